"""Managed ids: which ids get a row, which lose it, and that shards do the same as the whole table."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import COUNTS, ROWS_PER_SET, ManagedConfig, id_range
from asymdiffrec.embeddings.planner.devices import DEVICES, Cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.tables import FieldTables
from tests.embeddings.managed.small_managed import managed_module, problem, rows_of, skewed, universe


class Reference:
    """A reference that applies the rules id by id, with 63 slots of [id, count, last step] for each set."""

    def __init__(self, rows: int, config: ManagedConfig):
        self.config, self.step = config, 0
        self.ids_per_set = id_range(rows) // (rows // ROWS_PER_SET)
        self.sets = [[None] * (ROWS_PER_SET - 1) for _ in range(rows // ROWS_PER_SET)]
        self.candidates = [[None] * (ROWS_PER_SET - 1) for _ in range(rows // ROWS_PER_SET)]
        self.counters = Counter()

    def find(self, slots: list, id_: int) -> list | None:
        return next((entry for entry in slots if entry and entry[0] == id_), None)

    def insert(self, slots: list, id_: int, count: int, policy: str) -> tuple[bool, bool]:
        def score(entry: list | None) -> tuple:
            return (0, 0) if entry is None else (entry[1], entry[2]) if policy == "lfu" else (entry[2], entry[1])

        slot = min(range(len(slots)), key=lambda number: score(slots[number]))
        new, old = [id_, count, self.step], slots[slot]
        if score(new) <= score(old):
            return False, False
        slots[slot] = new
        return True, old is not None

    def update(self, ids: list[int]) -> None:
        self.step += 1
        occurrences, admitted, new_ids = Counter(ids), {}, []
        for id_ in sorted(occurrences):
            entry = self.find(self.sets[id_ // self.ids_per_set], id_)
            if entry:
                entry[1], entry[2] = entry[1] + occurrences[id_], self.step
            elif candidate := self.find(self.candidates[id_ // self.ids_per_set], id_):
                candidate[1], candidate[2] = candidate[1] + occurrences[id_], self.step
                admitted[id_] = candidate[1]
            else:
                new_ids.append(id_)
        for id_ in sorted(new_ids, key=lambda id_: (-occurrences[id_], id_)):
            admitted[id_] = occurrences[id_]
            if self.config.admit_after > 1:
                self.insert(self.candidates[id_ // self.ids_per_set], id_, occurrences[id_], "lru")
        for id_, count in sorted(admitted.items(), key=lambda pair: (-pair[1], pair[0])):
            if count < self.config.admit_after:
                continue
            inserted, evicted = self.insert(self.sets[id_ // self.ids_per_set], id_, count, self.config.eviction)
            self.counters["insertions"] += inserted
            self.counters["evictions"] += evicted
            self.counters["failed_inserts"] += not inserted
            slots = self.candidates[id_ // self.ids_per_set]
            if inserted and (entry := self.find(slots, id_)):
                slots[slots.index(entry)] = None


@pytest.mark.parametrize("eviction", ["lfu", "lru"])
@pytest.mark.parametrize("admit_after", [1, 2, 4])
def test_rows_go_to_the_same_ids_as_in_the_reference(eviction: str, admit_after: int) -> None:
    rows = 128
    managed = managed_module(rows, admit_after=admit_after, eviction=eviction)
    reference = Reference(rows, ManagedConfig(admit_after=admit_after, eviction=eviction))
    ids, collisions = universe(rows, 900), 0
    for step in range(30):
        batch = skewed(ids, 400, step)
        rows_of_batch = rows_of(managed, batch)
        reference.update(batch.tolist())
        for store, expected in ((managed.slots, reference.sets), (managed.candidates, reference.candidates)):
            if store is not None:
                entries = torch.stack([store.ids, store.counts, store.seen], dim=2).tolist()
                assert entries == [[entry or [-1, 0, 0] for entry in slots] for slots in expected]
        collisions += int((rows_of_batch % ROWS_PER_SET == ROWS_PER_SET - 1).sum())
    *counters, ids_with_row = managed.take_counts().tolist()
    assert dict(zip(COUNTS, counters, strict=True)) == {**reference.counters, "collisions": collisions}
    assert ids_with_row == sum(entry is not None for slots in reference.sets for entry in slots)
    assert reference.counters["evictions"] > 10
    assert managed.take_counts().tolist() == [0, 0, 0, 0, ids_with_row]


def test_an_id_keeps_its_row_until_it_is_evicted() -> None:
    rows = 128
    managed, owner = managed_module(rows, admit_after=2), {}
    managed.on_new_rows = lambda rows, ids: owner.update(zip(rows.tolist(), ids.tolist(), strict=True))
    ids = universe(rows, 900)
    for step in range(30):
        batch = skewed(ids, 100, step)
        row_of_id = dict(zip(batch.tolist(), rows_of(managed, batch).tolist(), strict=True))
        id_of_row = {row: id_ for id_, row in row_of_id.items() if row % ROWS_PER_SET < ROWS_PER_SET - 1}
        assert all(owner[row] == id_ for row, id_ in id_of_row.items()), "rows are reset for their new id"
        # Every row, shared or not, belongs to the set of its id.
        assert all(id_ >> 61 == row // ROWS_PER_SET for id_, row in row_of_id.items())


def test_an_id_gets_a_row_after_admit_after_occurrences() -> None:
    managed = managed_module(64, admit_after=3)
    one, other = universe(64, 2).tolist()
    seen = [rows_of(managed, torch.tensor(batch))[0].item() for batch in ([one], [one, other], [one], [other, other])]
    assert [row == ROWS_PER_SET - 1 for row in seen] == [True, True, False, False]


def test_a_candidate_that_was_replaced_loses_its_count() -> None:
    managed = managed_module(64, admit_after=4)
    first, other = universe(64, ROWS_PER_SET).split(ROWS_PER_SET - 1)
    rows_of(managed, first)
    rows_of(managed, torch.cat([first, other.repeat(5)]))  # `other` replaces an id of `first` in its second step
    assert managed.take_counts().tolist()[0] == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_shards_together_do_what_the_whole_table_does(parts: int) -> None:
    rows = 256
    whole = managed_module(rows)
    segments = [rows * part // parts for part in range(parts + 1)]
    shards = [whole.rebuild_with_output_id_range(pair, segments) for pair in pairwise(segments)]
    ids = universe(rows, 1500)
    for step in range(20):
        batch = skewed(ids, 200, step)
        expected = rows_of(whole, batch)
        for number, shard in enumerate(shards):
            of_shard = batch // (id_range(rows) // parts) == number
            assert torch.equal(rows_of(shard, batch[of_shard]), expected[of_shard])
    for name, tensor in whole.state().items():
        assert torch.equal(torch.cat([shard.state()[name] for shard in shards]), tensor)
    assert torch.equal(sum(shard.take_counts() for shard in shards), whole.take_counts())


def test_counts_do_not_overflow() -> None:
    managed = managed_module(64, admit_after=1)
    one = universe(64, 1)
    for _ in range(2):
        rows_of(managed, one)
        managed.slots.counts[managed.slots.counts > 0] = 2**26 - 1
    assert managed.slots.counts.max() == 2**26 - 1


@pytest.mark.parametrize("admit_after", [1, 2])
def test_a_plan_counts_the_memory_of_ids(admit_after: int) -> None:
    rows, cluster = 1 << 20, Cluster(DEVICES["h100"], 1, 2)
    fields = FieldsConfig.model_validate({"fields": {"user": {"type": "id", "num_embeddings": rows}}}).to_schema()
    device_bytes = {}
    for collision in ("hash", "managed"):
        tables_config = TablesConfig.model_validate(
            {
                "per_table": {"user": {"collision": collision, "sharding": "row_wise"}},
                "managed": {"admit_after": admit_after},
                "kernels": ["fused", "fused_uvm"] if collision == "managed" else ["fused"],
            }
        )
        solution = solve(problem(FieldTables(fields, tables_config), fields, tables_config, cluster))
        device_bytes[collision] = solution.memory.device
        table_bytes = (solution.memory.weights + solution.memory.state).sum()
    ids = sum(tensor.nbytes for tensor in managed_module(rows, admit_after=admit_after).state().values())
    assert (device_bytes["managed"] - device_bytes["hash"]).tolist() == [ids / 2] * 2
    assert table_bytes == 2 * rows * 16 * 4 + ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_table": {"user": {"collision": "managed", "sharding": "table_wise"}}},
            "sharding: not allowed with collision",
        ),
        (
            {"per_table": {"user": {"collision": "managed", "kernel": "fused_uvm"}}},
            "kernel: not allowed with collision",
        ),
        ({"per_table": {"user": {"collision": "managed", "ranks": 2}}}, "ranks: not allowed with collision"),
        ({"managed": {"admit_after": 0}}, "greater than 0"),
        ({"managed": {"eviction": "random"}}, "'lfu' or 'lru'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TablesConfig.model_validate(settings)
