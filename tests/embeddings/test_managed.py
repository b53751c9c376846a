"""Managed collision: who gets a row, what happens to it, and that no number of ranks changes any of it."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import COUNTS, ROWS_PER_SET, ManagedConfig, ManagedIds, id_range
from asymdiffrec.embeddings.managed.lookup import managed_ids, take_counts
from asymdiffrec.embeddings.planner.devices import DEVICES, Cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.state import lookup_state, table_state, table_weights
from asymdiffrec.embeddings.tables import FieldTables
from tests.embeddings.ranks import run_ranks
from tests.embeddings.small_managed import (
    CPU,
    SEED,
    batch,
    config,
    load_and_go_on,
    make,
    problem,
    save_and_go_on,
    skewed,
    small,
    train,
    universe,
)

STD = 0.05


def module(rows: int, **settings: object) -> ManagedIds:
    return ManagedIds("user", rows, ManagedConfig.model_validate(settings), CPU)


def rows_of(managed: ManagedIds, ids: torch.Tensor) -> torch.Tensor:
    feature = JaggedTensor(ids, lengths=torch.ones(len(ids), dtype=torch.int64))
    return managed({"user": feature})["user"].values()


class Reference:
    """The rules one id after the other, in dictionaries of [id, count, seen] in 63 places for each set."""

    def __init__(self, rows: int, config: ManagedConfig):
        self.config, self.step = config, 0
        self.width = id_range(rows) // (rows // ROWS_PER_SET)
        self.held = [[None] * (ROWS_PER_SET - 1) for _ in range(rows // ROWS_PER_SET)]
        self.candidates = [[None] * (ROWS_PER_SET - 1) for _ in range(rows // ROWS_PER_SET)]
        self.counted = Counter()

    def find(self, places: list, one: int) -> list | None:
        return next((entry for entry in places if entry and entry[0] == one), None)

    def insert(self, places: list, one: int, count: int, policy: str) -> tuple[bool, bool]:
        def score(entry: list | None) -> tuple:
            return (0, 0) if entry is None else (entry[1], entry[2]) if policy == "lfu" else (entry[2], entry[1])

        place = min(range(len(places)), key=lambda number: score(places[number]))
        new, old = [one, count, self.step], places[place]
        if score(new) <= score(old):
            return False, False
        places[place] = new
        return True, old is not None

    def learn(self, ids: list[int]) -> None:
        self.step += 1
        times, admitted, unknown = Counter(ids), {}, []
        for one in sorted(times):
            entry = self.find(self.held[one // self.width], one)
            if entry:
                entry[1], entry[2] = entry[1] + times[one], self.step
            elif known := self.find(self.candidates[one // self.width], one):
                known[1], known[2] = known[1] + times[one], self.step
                admitted[one] = known[1]
            else:
                unknown.append(one)
        for one in sorted(unknown, key=lambda one: (-times[one], one)):
            admitted[one] = times[one]
            if self.config.admit_after > 1:
                self.insert(self.candidates[one // self.width], one, times[one], "lru")
        for one, count in sorted(admitted.items(), key=lambda pair: (-pair[1], pair[0])):
            if count < self.config.admit_after:
                continue
            placed, evicted = self.insert(self.held[one // self.width], one, count, self.config.eviction)
            self.counted["insertions"] += placed
            self.counted["evictions"] += evicted
            self.counted["failed_inserts"] += not placed
            places = self.candidates[one // self.width]
            if placed and (entry := self.find(places, one)):
                places[places.index(entry)] = None


@pytest.mark.parametrize("eviction", ["lfu", "lru"])
@pytest.mark.parametrize("admit_after", [1, 2, 4])
def test_rows_go_to_the_ids_that_the_rules_name(eviction: str, admit_after: int) -> None:
    rows = 128
    managed = module(rows, admit_after=admit_after, eviction=eviction)
    reference = Reference(rows, ManagedConfig(admit_after=admit_after, eviction=eviction))
    ids, collisions = universe(rows, 900), 0
    for step in range(30):
        batch = skewed(ids, 400, step)
        own = rows_of(managed, batch)
        reference.learn(batch.tolist())
        for store, expected in ((managed.slots, reference.held), (managed.candidates, reference.candidates)):
            if store is not None:
                found = torch.stack([store.ids, store.counts, store.seen], dim=2).tolist()
                assert found == [[entry or [-1, 0, 0] for entry in places] for places in expected]
        collisions += int((own % ROWS_PER_SET == ROWS_PER_SET - 1).sum())
    *counted, held = managed.take_counts().tolist()
    assert dict(zip(COUNTS, counted, strict=True)) == {**reference.counted, "collisions": collisions}
    assert held == sum(entry is not None for places in reference.held for entry in places)
    assert reference.counted["evictions"] > 10
    assert managed.take_counts().tolist() == [0, 0, 0, 0, held]


def test_an_id_keeps_its_row_until_it_is_evicted() -> None:
    rows = 128
    managed, owner = module(rows, admit_after=2), {}
    managed.on_new_rows = lambda rows, ids: owner.update(zip(rows.tolist(), ids.tolist(), strict=True))
    ids = universe(rows, 900)
    for step in range(30):
        batch = skewed(ids, 100, step)
        found = dict(zip(batch.tolist(), rows_of(managed, batch).tolist(), strict=True))
        of_row = {row: one for one, row in found.items() if row % ROWS_PER_SET < ROWS_PER_SET - 1}
        assert all(owner[row] == one for row, one in of_row.items())  # nobody else's, and reset when it was given
        assert all(
            one >> 61 == row // ROWS_PER_SET for one, row in found.items()
        )  # of the id's own set, shared row or not


def test_a_row_is_given_after_so_many_sightings() -> None:
    managed = module(64, admit_after=3)
    one, other = universe(64, 2).tolist()
    seen = [rows_of(managed, torch.tensor(batch))[0].item() for batch in ([one], [one, other], [one], [other, other])]
    assert [row == ROWS_PER_SET - 1 for row in seen] == [True, True, False, False]


def test_a_candidate_that_leaves_is_not_taken_for_its_successor() -> None:
    managed = module(64, admit_after=4)
    known, other = universe(64, ROWS_PER_SET).split(ROWS_PER_SET - 1)
    rows_of(managed, known)
    rows_of(managed, torch.cat([known, other.repeat(5)]))  # takes the place of one that was seen for the second time
    assert managed.take_counts().tolist()[0] == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_shards_do_together_what_one_does_alone(parts: int) -> None:
    rows = 256
    whole = module(rows)
    segments = [rows * part // parts for part in range(parts + 1)]
    shards = [whole.rebuild_with_output_id_range(pair, segments) for pair in pairwise(segments)]
    ids = universe(rows, 1500)
    for step in range(20):
        batch = skewed(ids, 200, step)
        expected = rows_of(whole, batch)
        for number, one in enumerate(shards):
            own = batch // (id_range(rows) // parts) == number
            assert torch.equal(rows_of(one, batch[own]), expected[own])
    for name, tensor in whole.state().items():
        assert torch.equal(torch.cat([one.state()[name] for one in shards]), tensor)
    assert torch.equal(sum(one.take_counts() for one in shards), whole.take_counts())


def test_counts_do_not_overflow() -> None:
    managed = module(64, admit_after=1)
    one = universe(64, 1)
    for _ in range(2):
        rows_of(managed, one)
        managed.slots.counts[managed.slots.counts > 0] = 2**26 - 1
    assert managed.slots.counts.max() == 2**26 - 1


def local(model, optimizer, tables_config) -> dict[str, torch.Tensor]:
    """Copies of all that a rank holds of its tables."""
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
def test_with_rows_enough_it_trains_as_a_table_without_collisions(optimizer: str) -> None:
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
        found = batch(step, rows)
        keys = found.ids.keys()
        table = dict(zip(keys, ("user", "user", None, "tags"), strict=True))
        values = [
            torch.searchsorted(distinct[table[key]], found.ids[key].values()) if table[key] else found.ids[key].values()
            for key in keys
        ]
        found.ids = KeyedJaggedTensor(keys, torch.cat(values), lengths=found.ids.lengths())
        return found

    assert losses == pytest.approx(train(plain, plain_update, range(20), dense), abs=1e-6)
    weights, other = (local(*one) for one in ((model, update, managed_config), (plain, plain_update, plain_config)))
    for table, ids in distinct.items():
        seen = managed_ids(model)[table].slots.find(ids) >= 0
        assert seen.sum() > 20
        model.eval()
        rows_held = rows_of(managed_ids(model)[table], ids)
        for name in ("weight", "sum") if optimizer != "sgd" else ("weight",):
            torch.testing.assert_close(
                weights[f"{table}.{name}"][rows_held[seen]], other[f"{table}.{name}"][: len(ids)][seen]
            )


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("optimizer", "dtype"), [("adagrad", "fp32"), ("rowwise_adagrad", "fp32"), ("adagrad", "fp16")]
)
def test_a_row_that_changes_hands_starts_anew(optimizer: str, dtype: str) -> None:
    tables_config = config(optimizer, admit_after=1).model_copy(update={"dtype": dtype})
    model, update = make(128, tables_config)
    train(model, update, range(10), small)
    before = local(model, update, tables_config)
    loss, _ = model(small(10))  # rows change hands here, and nothing is learned yet
    after = local(model, update, tables_config)
    loss.backward()
    changed = (after["user.ids"] != before["user.ids"]).nonzero()
    ids, rows = after["user.ids"][tuple(changed.T)], changed @ torch.tensor([ROWS_PER_SET, 1])
    assert (before["user.ids"][tuple(changed.T)] >= 0).any()
    assert (before["user.sum"][rows] != 0).any()
    drawn = initial.draw_rows(ids, 16, STD, SEED, "user")
    assert torch.equal(after["user.weight"][rows], drawn.half() if dtype == "fp16" else drawn)
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
def test_the_pipeline_that_overlaps_batches_trains_alike() -> None:
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
    mine, theirs = local(model, update, tables_config), local(again, other, tables_config)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


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
def test_two_ranks_do_what_one_does_and_load_what_it_saved(tmp_path: Path) -> None:
    alone = {eviction: save_and_go_on(tmp_path / f"one-{eviction}", eviction) for eviction in ("lfu", "lru")}
    reports = run_ranks(__file__, tmp_path, 100)
    assert reports[0] == reports[1]
    for eviction, own in alone.items():
        assert own["counts"][1]["user/evictions"] > 0
        pair = reports[0]["saved"][eviction], reports[0]["loaded"][eviction]
        for found, start in ((pair[0], 0), (pair[1], 8), (load_and_go_on(tmp_path / f"two-{eviction}", eviction), 8)):
            assert found["losses"] == pytest.approx(own["losses"][start:], abs=1e-6)
            assert found["counts"] == own["counts"][start // 8 :]
    assert reports[0]["evaluated"] == pytest.approx(evaluate(tmp_path / "two-lfu"), abs=1e-6)
    assert reports[0]["error"].startswith("tables.per_table.user: 64 rows; with collision: managed on 2 ranks")


@pytest.mark.usefixtures("one_rank")
def test_a_checkpoint_of_other_rows_is_refused(tmp_path: Path) -> None:
    tables_config = config()
    model, update = make(128, tables_config)
    dcp.save(table_state(model, update, tables_config.optimizer), checkpoint_id=tmp_path)
    model, update = make(256, tables_config)
    with pytest.raises(dcp.CheckpointException, match="Size mismatch"):
        dcp.load(table_state(model, update, tables_config.optimizer), checkpoint_id=tmp_path)


@pytest.mark.parametrize("admit_after", [1, 2])
def test_the_plan_counts_the_memory_of_ids(admit_after: int) -> None:
    rows, where = 1 << 20, Cluster(DEVICES["h100"], 1, 2)
    fields = FieldsConfig.model_validate({"fields": {"user": {"type": "id", "num_embeddings": rows}}}).to_schema()
    held = {}
    for collision in ("hash", "managed"):
        tables_config = TablesConfig.model_validate(
            {
                "per_table": {"user": {"collision": collision, "sharding": "row_wise"}},
                "managed": {"admit_after": admit_after},
                "kernels": ["fused", "fused_uvm"] if collision == "managed" else ["fused"],
            }
        )
        solution = solve(problem(FieldTables(fields, tables_config), fields, tables_config, where))
        held[collision] = solution.memory.device
        kept = (solution.memory.weights + solution.memory.state).sum()
    ids = sum(tensor.nbytes for tensor in module(rows, admit_after=admit_after).state().values())
    assert (held["managed"] - held["hash"]).tolist() == [ids / 2] * 2
    assert kept == 2 * rows * 16 * 4 + ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_table": {"user": {"collision": "managed", "sharding": "table_wise"}}},
            "sharding: a table with collision",
        ),
        ({"per_table": {"user": {"collision": "managed", "kernel": "fused_uvm"}}}, "kernel: a table with collision"),
        ({"per_table": {"user": {"collision": "managed", "ranks": 2}}}, "ranks: a table with collision"),
        ({"managed": {"admit_after": 0}}, "greater than 0"),
        ({"managed": {"eviction": "random"}}, "'lfu' or 'lru'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TablesConfig.model_validate(settings)
