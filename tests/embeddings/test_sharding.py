"""One model under many plans, on one and on two ranks: the same losses, and checkpoints that load everywhere.

Run as a program, this file is one of the two ranks.
"""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torchrec.optim
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.embeddings import initial
from asymdiffrec.embeddings.optimizers import dense_parameters, tables_optimizer
from asymdiffrec.embeddings.plan import Problem, solve
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import local_cluster
from asymdiffrec.embeddings.sharding import agreed, shard
from asymdiffrec.embeddings.state import local_parts, table_state, table_weights
from asymdiffrec.embeddings.tables import FieldTables, TablesConfig
from tests.embeddings.ranks import two_reports

pytestmark = [
    pytest.mark.filterwarnings("ignore:fbgemm..dense_embedding_codegen_lookup_function:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning"),
]

SCHEMA = FieldsConfig.model_validate(
    {
        "fields": {
            "age": {"type": "number"},
            "user": {"type": "id", "rows": 40},
            "item": {"type": "id", "rows": 30},
            "tags": {"type": "id_list", "rows": 12, "pooling": "sum", "embedding_dim": 8},
            "history": {"type": "id_list", "rows": 30, "table": "item"},
            "country": {"type": "id", "rows": 3},
            "price": {"type": "number", "embedding_dim": 4},
        }
    }
).to_schema()
TABLES = {"user": (40, 16), "item": (30, 16), "tags": (12, 8), "country": (3, 16)}
POOLING = {"user": "sum", "item": "mean", "tags": "sum", "country": "sum"}
SEED, BATCH = 5, 32
MIXED = {"user": "data_parallel", "item": "row_wise", "tags": "column_wise", "country": "table_wise"}
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
"""Kinds with fp16 tables, and with embeddings that travel in fp16"""
EVERY = [(optimizer, kind) for optimizer, kinds in STEPS.items() for kind in kinds]


def config(optimizer: str, kind: str) -> TablesConfig:
    plans = {"mixed": MIXED, "planned": {}, "half": MIXED, "half_sent": MIXED}
    rates = {"sgd": 1.0, "adagrad": 0.05, "rowwise_adagrad": 0.05}
    return TablesConfig.model_validate(
        {
            "optimizer": {"name": optimizer, "learning_rate": rates[optimizer]},
            "per_table": {
                table: {"sharding": one} for table, one in plans.get(kind, dict.fromkeys(TABLES, kind)).items()
            },
            "allow_column_split": kind == "column_wise",
            "dtype": "fp16" if kind == "half" else "fp32",
            "communication": "fp16" if kind == "half_sent" else "fp32",
        }
    )


@functools.cache
def batch(step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """This rank's part of a global batch, with fields missing."""
    draw = torch.Generator().manual_seed(step)
    bags = {name: [] for name in SCHEMA.hashed}
    for name, field in SCHEMA.hashed.items():
        longest = 1 if field.type == "id" else 4
        for length in torch.randint(0, longest + 1, (BATCH,), generator=draw).tolist():
            bags[name].append(torch.randint(0, field.rows, (length,), generator=draw))
    numbers = torch.randn(BATCH, 2, generator=draw)
    absent = torch.rand(BATCH, 2, generator=draw) < 0.3
    label = torch.bernoulli(torch.full((BATCH,), 0.4), generator=draw)
    own = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    lengths = torch.tensor([[len(bag) for bag in bags[name][own]] for name in bags])
    count = lengths.shape[1]
    return Batch(
        ids=KeyedJaggedTensor(
            keys=list(bags),
            values=torch.cat([torch.cat(bags[name][own]) for name in bags]),
            lengths=lengths.flatten(),
        ),
        numbers=numbers.masked_fill(absent, 0.0)[own],
        missing=torch.cat([lengths.T == 0, absent[own]], dim=1),
        label=label[own],
        weight=torch.ones(count),
        user=torch.zeros(count, dtype=torch.int64),
        sample_index=torch.arange(count),
        counted=count,
    )


class Model(nn.Module):
    def __init__(self, tables: nn.Module, width: int):
        super().__init__()
        self.tables = tables
        self.head = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        clean, missing = self.tables(batch)
        logits = self.head(clean).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.label), missing


def planned(model: nn.Module, schema: Schema, tables_config: TablesConfig) -> ShardingPlan:
    where = local_cluster("cpu", None, dist.get_world_size())
    problem = Problem(model, schema, tables_config, where, BATCH, DenseWork(0, 0.0, 0.0, 0, 0, 0))
    return agreed(lambda: solve(problem).plan)


def make(tables_config: TablesConfig, seed: int = SEED):
    """The sharded model, and the optimizers of its tables and of the rest."""
    torch.manual_seed(seed)
    tables = FieldTables(SCHEMA, tables_config)
    model = Model(tables, sum(tables.widths))
    plan = planned(model, SCHEMA, tables_config)
    sharded = shard(model, tables_config, plan, torch.device("cpu"), seed)
    dense = KeyedOptimizerWrapper(dense_parameters(sharded), lambda weights: torch.optim.SGD(weights, lr=0.3))
    return sharded, tables_optimizer(sharded, tables_config.optimizer), dense


def train(model, optimizers, steps) -> list[float]:
    losses = []
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, _ = model(batch(step, dist.get_rank(), dist.get_world_size()))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        shared = loss.detach().clone()
        dist.all_reduce(shared)
        losses.append(shared.item() / dist.get_world_size())
    return losses


def checkpoint(model, optimizer, tables_config: TablesConfig) -> dict[str, torch.Tensor]:
    dense = {f"dense.{name}": weight.detach() for name, weight in dense_parameters(model).items()}
    return table_state(model, optimizer, tables_config.optimizer) | dense


def save_and_go_on(optimizer: str, kind: str, folder: Path) -> list[float]:
    """Train ten steps, save, and train five more."""
    tables_config = config(optimizer, kind)
    model, tables, dense = make(tables_config)
    train(model, [tables, dense], range(10))
    dcp.save(checkpoint(model, tables, tables_config), checkpoint_id=folder)
    return train(model, [tables, dense], range(10, 15))


def load_and_go_on(optimizer: str, kind: str, source: Path, copy: Path) -> list[float]:
    """Load into another model, save that at once, and train five steps."""
    tables_config = config(optimizer, kind)
    model, tables, dense = make(tables_config, seed=SEED + 1)
    dcp.load(checkpoint(model, tables, tables_config), checkpoint_id=source)
    dcp.save(checkpoint(model, tables, tables_config), checkpoint_id=copy)
    return train(model, [tables, dense], range(10, 15))


SAVES = [
    ("adagrad", "row_wise"),
    ("adagrad", "mixed"),
    ("rowwise_adagrad", "table_wise"),
    ("rowwise_adagrad", "column_wise"),
]
LOADS = [
    ("adagrad-row_wise", "table_wise"),
    ("adagrad-row_wise", "data_parallel"),
    ("adagrad-mixed", "grid_shard"),
    ("adagrad-one", "row_wise"),
    ("adagrad-one", "column_wise"),
    ("rowwise_adagrad-table_wise", "data_parallel"),
    ("rowwise_adagrad-one", "row_wise"),
    ("rowwise_adagrad-column_wise", "column_wise"),
]
LOADS_ON_ONE = [
    ("adagrad-row_wise", "table_wise"),
    ("adagrad-mixed", "data_parallel"),
    ("rowwise_adagrad-table_wise", "table_wise"),
    ("rowwise_adagrad-table_wise", "data_parallel"),
]


def check_initial_weights(model) -> None:
    """Every part that this rank holds is that part of the table's weights."""
    for table, weight in table_weights(model).items():
        whole = torch.empty(TABLES[table])
        initial.fill(whole, 0.05, SEED, table)
        for block, row, column in local_parts(weight):
            part = whole[row : row + block.shape[0], column : column + block.shape[1]]
            assert torch.equal(block, part.to(block.dtype))


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    report: dict = {"losses": {}, "keys": {}, "saved": {}, "loaded": {}}
    for optimizer, kind in EVERY:
        tables_config = config(optimizer, kind)
        model, tables, dense = make(tables_config)
        check_initial_weights(model)
        report["losses"][f"{optimizer}-{kind}"] = train(model, [tables, dense], range(STEPS[optimizer][kind]))
        report["keys"][f"{optimizer}-{kind}"] = list(table_state(model, tables, tables_config.optimizer))
    for optimizer, kind in SAVES:
        report["saved"][f"{optimizer}-{kind}"] = save_and_go_on(optimizer, kind, folder / f"{optimizer}-{kind}")
    for source, kind in LOADS:
        report["loaded"][f"{source}-{kind}"] = load_and_go_on(
            source.split("-")[0], kind, folder / source, folder / f"{source}-{kind}"
        )
    try:
        make(TablesConfig.model_validate({"optimizer": {"name": "adam"}}))
    except ValueError as error:
        report["error"] = str(error)
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
def two_ranks(one_rank, tmp_path_factory):
    """What two ranks reported, and the folder of all checkpoints; one rank wrote the two that they load."""
    folder = tmp_path_factory.mktemp("ranks")
    saved = {
        f"{optimizer}-one": save_and_go_on(optimizer, "table_wise", folder / f"{optimizer}-one")
        for optimizer in ("adagrad", "rowwise_adagrad")
    }
    reports = two_reports(__file__, folder, 200)
    assert reports[0] == reports[1]
    reports[0]["saved"] |= saved
    return reports[0], folder


class PlainTables(nn.Module):
    """The same look-up out of PyTorch's own modules, on one process and not sharded."""

    def __init__(self, numbers: nn.Module):
        super().__init__()
        self.bags = nn.ModuleDict({name: nn.EmbeddingBag(*size, mode="sum") for name, size in TABLES.items()})
        for name, bag in self.bags.items():
            initial.fill(bag.weight.data, 0.05, SEED, name)
        self.numbers = numbers

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        columns = []
        for name, field in SCHEMA.hashed.items():
            weight = self.bags[SCHEMA.table(name)].weight
            pooling = getattr(field, "pooling", "sum")
            bag = batch.ids[name]
            columns.append(
                nn.functional.embedding_bag(bag.values(), weight, bag.offsets(), mode=pooling, include_last_offset=True)
            )
        for place, name in enumerate(SCHEMA.numbers):
            own = slice(0, 16) if name == "age" else slice(16, 20)
            value = batch.numbers[:, place : place + 1] * self.numbers.direction[own] + self.numbers.bias[own]
            columns.append(value * ~batch.missing[:, len(SCHEMA.hashed) + place].unsqueeze(1))
        return torch.cat(columns, dim=1), batch.missing


REFERENCES = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=1.0),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.05, eps=1e-8),
    "rowwise_adagrad": lambda weights: torchrec.optim.RowWiseAdagrad(weights, lr=0.05, eps=1e-8),
}


@pytest.fixture(scope="module")
def reference(one_rank):
    """The losses of the unsharded model, for each optimizer."""
    losses = {}
    for name, optimizer in REFERENCES.items():
        torch.manual_seed(SEED)
        tables = FieldTables(SCHEMA, config(name, "planned"))
        model = Model(tables, sum(tables.widths))
        model.tables = PlainTables(tables.columns.numbers)
        of_tables = list(model.tables.bags.parameters())
        dense = [*tables.columns.parameters(), *model.head.parameters()]
        losses[name] = train(model, [optimizer(of_tables), torch.optim.SGD(dense, lr=0.3)], range(50))
    return losses


@pytest.mark.parametrize(("optimizer", "kind"), EVERY)
def test_two_ranks_train_like_the_unsharded_model(two_ranks, reference, optimizer, kind):
    report, _ = two_ranks
    expected = reference[optimizer][: STEPS[optimizer][kind]]
    found = report["losses"][f"{optimizer}-{kind}"]
    if kind in HALVES:
        assert found == pytest.approx(expected, rel=3e-4)
        assert found != pytest.approx(expected, rel=1e-7)
    else:
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("adagrad", "planned"), ("adagrad", "mixed"), ("rowwise_adagrad", "data_parallel"), ("sgd", "column_wise")],
)
def test_one_rank_trains_like_the_unsharded_model(one_rank, reference, optimizer, kind):
    model, tables, dense = make(config(optimizer, kind))
    check_initial_weights(model)
    assert train(model, [tables, dense], range(50)) == pytest.approx(reference[optimizer], rel=1e-5)


def test_state_has_the_same_keys_everywhere(two_ranks):
    report, _ = two_ranks
    for name, keys in report["keys"].items():
        states = [] if name.startswith("sgd") else ["sum"]
        assert sorted(keys) == sorted(f"{table}.{key}" for table in TABLES for key in ["weight", *states])


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as unsharded tensors."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: torch.full(tensor.size, torch.nan) for key, tensor in metadata.items()}
    dcp.load(tensors, checkpoint_id=folder)
    return tensors


def check_loaded(original: Path, copy: Path) -> None:
    expected, found = whole(original), whole(copy)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(("source", "kind"), LOADS)
def test_two_ranks_load_any_checkpoint(two_ranks, source, kind):
    report, folder = two_ranks
    check_loaded(folder / source, folder / f"{source}-{kind}")
    assert report["loaded"][f"{source}-{kind}"] == pytest.approx(report["saved"][source], rel=1e-6)


@pytest.mark.parametrize(("source", "kind"), LOADS_ON_ONE)
def test_one_rank_loads_the_checkpoint_of_two(two_ranks, tmp_path, source, kind):
    report, folder = two_ranks
    losses = load_and_go_on(source.split("-")[0], kind, folder / source, tmp_path)
    check_loaded(folder / source, tmp_path)
    assert losses == pytest.approx(report["saved"][source], rel=1e-6)


def test_an_error_of_the_planner_reaches_every_rank(two_ranks):
    report, _ = two_ranks
    assert report["error"].startswith("tables.optimizer.name: adam")


@pytest.mark.parametrize("kind", ["planned", "mixed", "row_wise"])
def test_columns_are_those_of_the_schema(one_rank, kind):
    model, _, _ = make(config("adagrad", kind))
    tables = model.module.tables
    sample = batch(3)
    clean, missing = tables(sample)
    expected, _ = PlainTables(tables.columns.numbers)(sample)
    assert torch.equal(missing, sample.missing)
    torch.testing.assert_close(clean, expected)
    assert len(tables.widths) == len(SCHEMA.names)
    for column, embedding in enumerate(clean.split(tables.widths, dim=1)):
        absent = missing[:, column]
        assert absent.any()
        assert not embedding[absent].any()
        assert embedding[~absent].any(dim=1).all()


def test_optimizers_share_out_the_parameters(one_rank):
    model, tables, _ = make(config("adagrad", "mixed"))
    dense = set(dense_parameters(model))
    assert dense.isdisjoint(tables.params)
    assert dense | set(tables.params) == {name for name, _ in model.named_parameters()}
    assert dense == {"tables.columns.numbers.direction", "tables.columns.numbers.bias"} | {
        f"head.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", ["table_wise", "data_parallel"])
def test_learning_rate_of_the_groups_counts(one_rank, kind):
    model, tables, dense = make(config("adagrad", kind))
    before = {name: weight.clone() for name, weight in plain_weights(model).items()}
    for group in tables.param_groups:
        group["lr"] = 0.0
    train(model, [tables, dense], range(2))
    assert all(torch.equal(weight, before[name]) for name, weight in plain_weights(model).items())


def plain_weights(model) -> dict[str, torch.Tensor]:
    return {table: next(local_parts(weight))[0] for table, weight in table_weights(model).items()}


def test_sharding_leaves_the_random_numbers_alone(one_rank):
    drawn = []
    for kind in ("table_wise", "data_parallel"):
        make(config("adagrad", kind))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_evaluation_in_between_changes_nothing(one_rank):
    losses = []
    for evaluations in (0, 2):
        model, tables, dense = make(config("adagrad", "mixed"))
        found = train(model, [tables, dense], range(4))
        model.eval()
        with torch.no_grad():
            for step in range(evaluations):
                model(batch(step, 0, 2))
        model.train()
        losses.append(found + train(model, [tables, dense], range(4, 8)))
    assert losses[0] == losses[1]


def test_a_schema_without_numbers(one_rank):
    settings = TablesConfig()
    schema = FieldsConfig.model_validate({"fields": {"user": {"type": "id", "rows": 40}}}).to_schema()
    model = FieldTables(schema, settings)
    sharded = shard(model, settings, planned(model, schema, settings), torch.device("cpu"), SEED)
    assert dense_parameters(sharded) == {}
    ids = KeyedJaggedTensor(keys=["user"], values=torch.tensor([7]), lengths=torch.tensor([0, 1]))
    clean, _ = sharded(SimpleNamespace(ids=ids, numbers=torch.zeros(2, 0), missing=torch.tensor([[True], [False]])))
    expected = torch.zeros(2, 16)
    initial.fill(expected[1:], 0.05, SEED, "user", row=7)
    assert torch.equal(clean, expected)


def test_pipeline_trains_like_the_plain_loop(one_rank):
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


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
