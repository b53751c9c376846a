"""Tables with managed collision in training: resets of rows, checkpoints, and independence of the number of ranks."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.managed.ids import ROWS_PER_SET
from asymdiffrec.embeddings.managed.lookup import managed_ids, take_counts
from asymdiffrec.embeddings.state import lookup_state, table_state, table_weights
from asymdiffrec.embeddings.torchrec_compat import ShardedTensor
from tests.embeddings.managed.small_managed import (
    CPU,
    SEED,
    batch,
    config,
    load_and_go_on,
    make,
    rows_of,
    save_and_go_on,
    small,
    train,
    universe,
)
from tests.embeddings.ranks import run_ranks

STD = 0.05


def local(model, optimizer, tables_config) -> dict[str, torch.Tensor]:
    """Return copies of all tensors of the tables on this rank."""
    state = table_state(model, optimizer, tables_config.optimizer)
    return {
        name: (tensor.local_tensor() if isinstance(tensor, ShardedTensor) else tensor).clone()
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def one_rank():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "1")
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "sgd"])
def test_with_enough_rows_it_trains_like_a_table_without_collisions(optimizer: str) -> None:
    rows = 1024
    managed_config = config(optimizer, admit_after=1)
    model, update = make(rows, managed_config)
    losses = train(model, update, range(20), lambda step: batch(step, rows))
    assert take_counts(model)["user/evictions"] == 0

    distinct = {"user": universe(rows, 300).sort().values, "tags": universe(rows, 40).sort().values}
    plain_config = config(optimizer, "hash")
    plain, plain_update = make(rows, plain_config)
    for table, ids in distinct.items():
        weight = table_weights(plain)[table].local_tensor()
        weight[: len(ids)] = initial.draw_rows(ids, weight.shape[1], STD, SEED, table)

    def dense(step: int) -> Batch:
        dense_batch = batch(step, rows)
        ids = dense_batch.ids
        table_of = {"user": "user", "history": "user", "tags": "tags"}
        values = [
            torch.searchsorted(distinct[table_of[key]], ids[key].values()) if key in table_of else ids[key].values()
            for key in ids.keys()  # noqa: SIM118
        ]
        dense_batch.ids = KeyedJaggedTensor(ids.keys(), torch.cat(values), lengths=ids.lengths())
        return dense_batch

    assert losses == pytest.approx(train(plain, plain_update, range(20), dense), abs=1e-6)
    weights, other = (local(*one) for one in ((model, update, managed_config), (plain, plain_update, plain_config)))
    for table, ids in distinct.items():
        has_row = managed_ids(model)[table].slots.find(ids) >= 0
        assert has_row.sum() > 20
        model.eval()
        managed_rows = rows_of(managed_ids(model)[table], ids)
        for name in ("weight", "sum") if optimizer != "sgd" else ("weight",):
            torch.testing.assert_close(
                weights[f"{table}.{name}"][managed_rows[has_row]], other[f"{table}.{name}"][: len(ids)][has_row]
            )


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("optimizer", "dtype"), [("adagrad", "fp32"), ("rowwise_adagrad", "fp32"), ("adagrad", "fp16")]
)
def test_a_row_that_changes_its_id_is_reset(optimizer: str, dtype: str) -> None:
    tables_config = config(optimizer, admit_after=1).model_copy(update={"dtype": dtype})
    model, update = make(128, tables_config)
    train(model, update, range(10), small)
    before = local(model, update, tables_config)
    loss, _ = model(small(10))  # rows change their ids here; the backward pass comes later
    after = local(model, update, tables_config)
    loss.backward()
    changed = (after["user.ids"] != before["user.ids"]).nonzero()
    ids, rows = after["user.ids"][tuple(changed.T)], changed @ torch.tensor([ROWS_PER_SET, 1])
    assert (before["user.ids"][tuple(changed.T)] >= 0).any()
    assert (before["user.sum"][rows] != 0).any()
    initial_rows = initial.draw_rows(ids, 16, STD, SEED, "user")
    assert torch.equal(after["user.weight"][rows], initial_rows.half() if dtype == "fp16" else initial_rows)
    assert (after["user.sum"][rows] == 0).all()
    others = torch.ones(128, dtype=torch.bool)
    others[rows] = False
    for name in ("user.weight", "user.sum"):
        assert torch.equal(after[name][others], before[name][others])


@pytest.mark.usefixtures("one_rank")
def test_evaluation_changes_nothing() -> None:
    tables_config = config()
    model, update = make(128, tables_config)
    train(model, update, range(5), small)
    take_counts(model)
    before = local(model, update, tables_config)
    model.eval()
    with torch.no_grad():
        scores = [model(small(step))[0] for step in (7, 8, 7)]
    assert scores[0] == scores[2]
    after = local(model, update, tables_config)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [value for name, value in take_counts(model).items() if not name.endswith("/ids")] == [0] * 8


@pytest.mark.usefixtures("one_rank")
def test_the_pipeline_that_overlaps_batches_gives_the_same_tables() -> None:
    tables_config = config()
    expected = train(*make(128, tables_config), range(8), small)
    model, update = make(128, tables_config)
    pipeline, stream = TrainPipelineSparseDist(model, update, CPU), iter([small(step) for step in range(8)])
    torch.manual_seed(0)
    for loss in expected:
        pipeline.progress(stream)
        del loss
    again, other = make(128, tables_config)
    train(again, other, range(8), small)
    piped, plain = local(model, update, tables_config), local(again, other, tables_config)
    assert all(torch.equal(piped[name], plain[name]) for name in piped)


def evaluate(source: Path) -> float:
    model, _ = make(128, config("sgd"), seed=SEED + 1)
    dcp.load(lookup_state(model), checkpoint_id=source)
    model.eval()
    loss = model(small(30))[0].detach()
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    report = {"saved": {}, "loaded": {}}
    for eviction in ("lfu", "lru"):
        report["saved"][eviction] = save_and_go_on(folder / f"two-{eviction}", eviction)
        report["loaded"][eviction] = load_and_go_on(folder / f"one-{eviction}", eviction)
    report["evaluated"] = evaluate(folder / "one-lfu")
    try:
        make(64, config())
    except InputError as error:
        report["error"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_two_ranks_train_like_one_and_load_its_checkpoint(tmp_path: Path) -> None:
    alone = {eviction: save_and_go_on(tmp_path / f"one-{eviction}", eviction) for eviction in ("lfu", "lru")}
    reports = run_ranks(__file__, tmp_path)
    assert reports[0] == reports[1]
    for eviction, expected in alone.items():
        assert expected["counts"][1]["user/evictions"] > 0
        pair = reports[0]["saved"][eviction], reports[0]["loaded"][eviction]
        for actual, start in ((pair[0], 0), (pair[1], 8), (load_and_go_on(tmp_path / f"two-{eviction}", eviction), 8)):
            assert actual["losses"] == pytest.approx(expected["losses"][start:], abs=1e-6)
            assert actual["counts"] == expected["counts"][start // 8 :]
    assert reports[0]["evaluated"] == pytest.approx(evaluate(tmp_path / "two-lfu"), abs=1e-6)
    assert reports[0]["error"].startswith("tables.per_table.user: num_embeddings is 64; with collision: managed")


@pytest.mark.usefixtures("one_rank")
def test_a_checkpoint_of_another_table_size_is_refused(tmp_path: Path) -> None:
    tables_config = config()
    model, update = make(128, tables_config)
    dcp.save(table_state(model, update, tables_config.optimizer), checkpoint_id=tmp_path)
    model, update = make(256, tables_config)
    with pytest.raises(dcp.CheckpointException, match="Size mismatch"):
        dcp.load(table_state(model, update, tables_config.optimizer), checkpoint_id=tmp_path)
