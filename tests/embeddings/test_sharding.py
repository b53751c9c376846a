"""A model has the same losses under every plan, on one and on two ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torchrec.optim
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.optimizers import dense_parameters
from asymdiffrec.embeddings.sharding import run_on_rank_0, shard
from asymdiffrec.embeddings.state import local_blocks, table_state, table_weights
from asymdiffrec.embeddings.tables import FieldTables
from tests.embeddings.ranks import run_ranks
from tests.embeddings.small_sharded import SCHEMA, SEED, TABLES, Model, batch, config, make, planned, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:fbgemm..dense_embedding_codegen_lookup_function:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning"),
]

STEPS = {
    "adagrad": {
        "table_wise": 50,
        "row_wise": 50,
        "column_wise": 50,
        "data_parallel": 50,
        "table_row_wise": 10,
        "table_column_wise": 10,
        "grid_shard": 10,
        "mixed": 10,
        "planned": 10,
        "half": 20,
        "half_sent": 20,
    },
    "rowwise_adagrad": {"table_wise": 10, "row_wise": 10, "data_parallel": 10, "planned": 10},
    "sgd": {"row_wise": 10, "data_parallel": 10},
}
HALVES = ("half", "half_sent")
"""Kinds with fp16 tables, and with embeddings sent in fp16."""
EVERY = [(optimizer, kind) for optimizer, kinds in STEPS.items() for kind in kinds]


def check_initial_weights(model) -> None:
    """Check that every block of this rank equals the same block of the unsharded table."""
    for table, weight in table_weights(model).items():
        whole = torch.empty(TABLES[table])
        initial.fill(whole, 0.05, SEED, table)
        for block, row, column in local_blocks(weight):
            part = whole[row : row + block.shape[0], column : column + block.shape[1]]
            assert torch.equal(block, part.to(block.dtype))


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    report: dict = {"losses": {}, "keys": {}}
    for optimizer, kind in EVERY:
        tables_config = config(optimizer, kind)
        model, tables, dense = make(tables_config)
        check_initial_weights(model)
        report["losses"][f"{optimizer}-{kind}"] = train(model, [tables, dense], range(STEPS[optimizer][kind]))
        report["keys"][f"{optimizer}-{kind}"] = list(table_state(model, tables, tables_config.optimizer))
    try:
        make(TablesConfig.model_validate({"optimizer": {"name": "adam"}}))
    except InputError as error:
        report["error"] = str(error)
    try:
        run_on_rank_0(lambda: 1 // 0)
    except (RuntimeError, ZeroDivisionError) as error:
        report["bug"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "1")
        patch.setenv("LOCAL_RANK", "0")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tensors are tiny
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Return the report of two ranks."""
    reports = run_ranks(__file__, tmp_path_factory.mktemp("ranks"))
    assert reports[0] == reports[1]
    return reports[0]


class PlainTables(nn.Module):
    """The same look-up from PyTorch's modules, unsharded, in one process."""

    def __init__(self, numbers: nn.Module):
        super().__init__()
        self.bags = nn.ModuleDict({name: nn.EmbeddingBag(*size, mode="sum") for name, size in TABLES.items()})
        for name, bag in self.bags.items():
            initial.fill(bag.weight.data, 0.05, SEED, name)
        self.numbers = numbers

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        columns = []
        for name, field in SCHEMA.sparse.items():
            weight = self.bags[SCHEMA.table_of(name).name].weight
            pooling = getattr(field, "pooling", "sum")
            bag = batch.ids[name]
            columns.append(
                nn.functional.embedding_bag(bag.values(), weight, bag.offsets(), mode=pooling, include_last_offset=True)
            )
        for index, name in enumerate(SCHEMA.numeric):
            columns_of_field = slice(0, 16) if name == "age" else slice(16, 20)
            value = (
                batch.numeric[:, index : index + 1] * self.numbers.direction[columns_of_field]
                + self.numbers.bias[columns_of_field]
            )
            columns.append(value * ~batch.missing[:, len(SCHEMA.sparse) + index].unsqueeze(1))
        return torch.cat(columns, dim=1), batch.missing


REFERENCES = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=1.0),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.05, eps=1e-8),
    "rowwise_adagrad": lambda weights: torchrec.optim.RowWiseAdagrad(weights, lr=0.05, eps=1e-8),
}


@pytest.fixture(scope="module")
def reference(one_rank):
    """Return the losses of the unsharded model, by optimizer."""
    losses = {}
    for name, optimizer in REFERENCES.items():
        torch.manual_seed(SEED)
        tables = FieldTables(SCHEMA, config(name, "planned"))
        model = Model(tables, tables.layout.total_width)
        model.tables = PlainTables(tables.concat.numeric)
        of_tables = list(model.tables.bags.parameters())
        dense = [*tables.concat.parameters(), *model.head.parameters()]
        losses[name] = train(model, [optimizer(of_tables), torch.optim.SGD(dense, lr=0.3)], range(50))
    return losses


@pytest.mark.parametrize(("optimizer", "kind"), EVERY)
def test_two_ranks_train_like_the_unsharded_model(two_ranks, reference, optimizer, kind):
    expected = reference[optimizer][: STEPS[optimizer][kind]]
    losses = two_ranks["losses"][f"{optimizer}-{kind}"]
    if kind in HALVES:
        assert losses == pytest.approx(expected, rel=3e-4)
        assert losses != pytest.approx(expected, rel=1e-7)
    else:
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("adagrad", "planned"), ("adagrad", "mixed"), ("rowwise_adagrad", "data_parallel"), ("sgd", "column_wise")],
)
def test_one_rank_trains_like_the_unsharded_model(one_rank, reference, optimizer, kind):
    model, tables, dense = make(config(optimizer, kind))
    check_initial_weights(model)
    assert train(model, [tables, dense], range(50)) == pytest.approx(reference[optimizer], rel=1e-5)


def test_state_has_the_same_keys_on_every_rank(two_ranks):
    for name, keys in two_ranks["keys"].items():
        states = [] if name.startswith("sgd") else ["sum"]
        assert sorted(keys) == sorted(f"{table}.{key}" for table in TABLES for key in ["weight", *states])


def test_an_input_error_of_the_planner_reaches_every_rank(two_ranks):
    assert two_ranks["error"].startswith("tables.optimizer.name: adam")


def test_any_exception_of_rank_0_reaches_every_rank(two_ranks):
    assert two_ranks["bug"] == "integer division or modulo by zero"


@pytest.mark.parametrize("kind", ["planned", "mixed", "row_wise"])
def test_embeddings_are_in_the_order_of_the_schema(one_rank, kind):
    model, _, _ = make(config("adagrad", kind))
    tables = model.module.tables
    sample = batch(3)
    clean, missing = tables(sample)
    expected, _ = PlainTables(tables.concat.numeric)(sample)
    assert torch.equal(missing, sample.missing)
    torch.testing.assert_close(clean, expected)
    assert tables.layout.num_fields == len(SCHEMA.names)
    for field, embedding in enumerate(clean.split(tables.layout.widths, dim=1)):
        is_missing = missing[:, field]
        assert is_missing.any()
        assert not embedding[is_missing].any()
        assert embedding[~is_missing].any(dim=1).all()


def test_every_parameter_has_exactly_one_optimizer(one_rank):
    model, tables, _ = make(config("adagrad", "mixed"))
    dense = set(dense_parameters(model))
    assert dense.isdisjoint(tables.params)
    assert dense | set(tables.params) == {name for name, _ in model.named_parameters()}
    assert dense == {"tables.concat.numeric.direction", "tables.concat.numeric.bias"} | {
        f"head.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", ["table_wise", "data_parallel"])
def test_tables_use_the_learning_rate_of_their_groups(one_rank, kind):
    model, tables, dense = make(config("adagrad", kind))
    before = {name: weight.clone() for name, weight in plain_weights(model).items()}
    for group in tables.param_groups:
        group["lr"] = 0.0
    train(model, [tables, dense], range(2))
    assert all(torch.equal(weight, before[name]) for name, weight in plain_weights(model).items())


def plain_weights(model) -> dict[str, torch.Tensor]:
    return {table: next(local_blocks(weight))[0] for table, weight in table_weights(model).items()}


def test_sharding_does_not_change_the_random_state(one_rank):
    drawn = []
    for kind in ("table_wise", "data_parallel"):
        make(config("adagrad", kind))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_evaluation_between_steps_changes_nothing(one_rank):
    losses = []
    for evaluations in (0, 2):
        model, tables, dense = make(config("adagrad", "mixed"))
        first_losses = train(model, [tables, dense], range(4))
        model.eval()
        with torch.no_grad():
            for step in range(evaluations):
                model(batch(step, 0, 2))
        model.train()
        losses.append(first_losses + train(model, [tables, dense], range(4, 8)))
    assert losses[0] == losses[1]


def test_a_schema_without_numeric_fields(one_rank):
    settings = TablesConfig()
    schema = FieldsConfig.model_validate({"fields": {"user": {"type": "id", "num_embeddings": 40}}}).to_schema()
    model = FieldTables(schema, settings)
    sharded = shard(model, settings, planned(model, schema, settings), torch.device("cpu"), SEED)
    assert dense_parameters(sharded) == {}
    ids = KeyedJaggedTensor(keys=["user"], values=torch.tensor([7]), lengths=torch.tensor([0, 1]))
    clean, _ = sharded(SimpleNamespace(ids=ids, numeric=torch.zeros(2, 0), missing=torch.tensor([[True], [False]])))
    expected = torch.zeros(2, 16)
    initial.fill(expected[1:], 0.05, SEED, "user", row=7)
    assert torch.equal(clean, expected)


def test_the_pipeline_trains_like_the_plain_loop(one_rank):
    settings = config("adagrad", "mixed")
    plain, tables, dense = make(settings)
    expected = train(plain, [tables, dense], range(6))
    model, tables, dense = make(settings)
    pipeline = TrainPipelineSparseDist(model, CombinedOptimizer([tables, dense]), torch.device("cpu"))
    batches = iter([batch(step) for step in range(6)])
    losses = []
    model.register_forward_hook(lambda module, inputs, output: losses.append(output[0].item()))
    for _ in range(6):
        pipeline.progress(batches)
    assert losses == pytest.approx(expected, rel=1e-6)
