"""A checkpoint of any number of ranks and any sharding loads exactly on any other number under any other sharding.

Seven processes form three worlds: of one rank, of two ranks, and of four ranks on two hosts.
"""

import json
import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from asymdiffrec.embeddings.optimizers import dense_parameters
from asymdiffrec.embeddings.state import table_state
from tests.embeddings.managed import small_managed
from tests.embeddings.ranks import run_ranks
from tests.embeddings.small_sharded import SEED, config, make, train

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is .*, assuming the intent is to load:UserWarning")

WORLDS, RANKS_PER_HOST = (1, 2, 4), 2
PAIRS = list(product(WORLDS, WORLDS))
KINDS = {
    "adagrad": (
        "table_wise",
        "row_wise",
        "column_wise",
        "data_parallel",
        "table_row_wise",
        "table_column_wise",
        "grid_shard",
        "mixed",
    ),
    "rowwise_adagrad": ("table_wise", "row_wise", "data_parallel", "table_row_wise"),
}
"""Sharding types by optimizer; row-wise Adagrad has one value for each row, so columns cannot be split."""
MANAGED_ROWS = 256
LOADS = [
    (optimizer, kind, kinds[(number + pair_number) % len(kinds)], *pair)
    for optimizer, kinds in KINDS.items()
    for pair_number, pair in enumerate(PAIRS)
    for number, kind in enumerate(kinds)
]
"""Each sharding is loaded under each other one by at least one pair of worlds, and each pair of worlds loads each."""


def checkpoint(model, optimizer, tables_config) -> dict[str, torch.Tensor]:
    dense = {f"dense.{name}": weight.detach() for name, weight in dense_parameters(model).items()}
    return table_state(model, optimizer, tables_config.optimizer) | dense


def save_and_go_on(optimizer: str, kind: str, folder: Path) -> list[float]:
    tables_config = config(optimizer, kind)
    model, tables, dense = make(tables_config)
    train(model, [tables, dense], range(3))
    dcp.save(checkpoint(model, tables, tables_config), checkpoint_id=folder)
    return train(model, [tables, dense], range(3, 5))


def load_and_go_on(optimizer: str, kind: str, source: Path, copy: Path) -> list[float]:
    """Load into a model with other weights, save it at once, and train."""
    tables_config = config(optimizer, kind)
    model, tables, dense = make(tables_config, seed=SEED + 1)
    dcp.load(checkpoint(model, tables, tables_config), checkpoint_id=source)
    dcp.save(checkpoint(model, tables, tables_config), checkpoint_id=copy)
    return train(model, [tables, dense], range(3, 5))


def run_rank(number: int, folder: Path) -> None:
    size = next(size for size in WORLDS if number < 2 * size - 1)
    rank = number - (size - 1)
    os.environ |= {"LOCAL_WORLD_SIZE": str(min(size, RANKS_PER_HOST)), "LOCAL_RANK": str(rank % RANKS_PER_HOST)}
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / f"store{size}"), size), rank=rank, world_size=size
    )
    report = {
        f"{optimizer}-{kind}-{size}": save_and_go_on(optimizer, kind, folder / f"{optimizer}-{kind}-{size}")
        for optimizer, kinds in KINDS.items()
        for kind in kinds
    }
    managed = {f"managed-{size}": small_managed.save_and_go_on(folder / f"managed-{size}", rows=MANAGED_ROWS)}

    worlds, names = (
        dist.FileStore(str(folder / "store"), sum(WORLDS)),
        [f"saved{index}" for index in range(sum(WORLDS))],
    )
    worlds.set(names[number], "")
    worlds.wait(names)

    for optimizer, kind, other, saved, loaded in LOADS:
        if loaded == size:
            source = f"{optimizer}-{kind}-{saved}"
            copy = f"{source}-{other}-{size}"
            report[copy] = load_and_go_on(optimizer, other, folder / source, folder / copy)
    for saved in WORLDS:
        source = folder / f"managed-{saved}"
        managed[f"managed-{saved}-{size}"] = small_managed.load_and_go_on(source, rows=MANAGED_ROWS)
    (folder / f"rank{number}.json").write_text(json.dumps({"losses": report, "managed": managed}))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory):
    """Return the losses of all worlds, the reports of their managed tables, and the folder of all checkpoints."""
    folder = tmp_path_factory.mktemp("worlds")
    reports = run_ranks(__file__, folder, sum(WORLDS))
    losses, managed = ({key: value for report in reports for key, value in report[part].items()} for part in reports[0])
    return losses, managed, folder


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint as unsharded tensors."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: torch.full(tensor.size, torch.nan) for key, tensor in metadata.items()}
    dcp.load(tensors, checkpoint_id=folder)
    return tensors


@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
@pytest.mark.parametrize("optimizer", KINDS)
def test_a_checkpoint_loads_exactly_and_training_goes_on_with_the_same_losses(
    matrix, optimizer: str, saved: int, loaded: int
) -> None:
    losses, _, folder = matrix
    for kind, other in [load[1:3] for load in LOADS if (load[0], *load[3:]) == (optimizer, saved, loaded)]:
        source = f"{optimizer}-{kind}-{saved}"
        copy = f"{source}-{other}-{loaded}"
        expected, loaded_again = whole(folder / source), whole(folder / copy)
        assert expected.keys() == loaded_again.keys()
        assert all(torch.equal(expected[key], loaded_again[key]) for key in expected)
        assert losses[copy] == pytest.approx(losses[source], rel=1e-6)


@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_ids_of_managed_tables_are_resharded_with_their_rows(matrix, saved: int, loaded: int) -> None:
    _, managed, _ = matrix
    source, target = managed[f"managed-{saved}"], managed[f"managed-{saved}-{loaded}"]
    assert source["counts"][1]["user/insertions"] > 0
    assert target["losses"] == pytest.approx(source["losses"][8:], abs=1e-6)
    assert target["counts"] == source["counts"][1:]
