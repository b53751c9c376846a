"""The readers on files: the same batches on any number of workers, from any position, every row where it belongs."""

import itertools
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.reader import EvaluationReader, Position, TrainingReader, WorkerContext
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.shards import open_shards

BATCH, LANES, WINDOW = 16, 8, 6
FILES = {"a": (70, 25), "b": (9, 9), "c": (60, 60)}  # rows, rows of a row group; 139 in all


def schema_of(**data):
    return FieldsConfig.model_validate(
        {
            "data": {"user": "row", "lanes": LANES, "window": WINDOW} | data,
            "fields": {
                "item": {"type": "id", "num_embeddings": 50},
                "tags": {"type": "id_list", "num_embeddings": 20},
                "price": {"type": "number"},
            },
        }
    ).to_schema()


SCHEMA = schema_of()


def write(folder, files=FILES, **others):
    """Files whose rows are numbered in the column `row`, with fields that are missing here and there."""
    first = 0
    for name, (rows, group) in files.items():
        number = np.arange(first, first + rows)
        columns = {
            "row": number,
            "item": pa.array(number * 7, mask=number % 5 == 0),
            "tags": [None if k % 7 == 0 else list(range(k, k + k % 4)) for k in number.tolist()],
            "price": pa.array(number / 8, mask=number % 3 == 0),
            "label": (number % 2).astype(np.float32),
        } | {column: values(number) for column, values in others.items()}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=group)
        first += rows
    return open_shards(str(folder))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("train"))


def samples(batch):
    """The samples of a batch, padding included, each as one comparable value."""
    lists = [[one.tolist() for one in jagged.to_dense()] for jagged in batch.ids.to_dict().values()]
    dense = [getattr(batch, n).tolist() for n in ("numeric", "missing", "label", "weight", "user", "sample_index")]
    return list(zip(*lists, *dense, strict=True))


def training(shards, worker=None, position=None, steps=20, schema=SCHEMA, seed=3):
    reader = TrainingReader(schema, shards, seed, BATCH, worker)
    return list(itertools.islice(reader.batches(position or Position()), steps))


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("window", [1, 6, 4096])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_a_global_batch_is_the_same_on_any_number_of_workers(shards, workers, window):
    schema = schema_of(window=window)
    alone = training(shards, schema=schema)
    parts = [training(shards, WorkerContext(rank, workers), schema=schema) for rank in range(workers)]
    for whole, *pieces in zip(alone, *parts, strict=True):
        assert {len(piece) for piece in pieces} == {BATCH // workers}
        assert samples(whole) == [sample for piece in pieces for sample in samples(piece)]


def test_steps_are_known_before_the_first_and_equal_on_all_workers(shards):
    steps = {TrainingReader(SCHEMA, shards, 3, BATCH, WorkerContext(rank, 4)).steps_per_epoch for rank in range(4)}
    assert steps == {139 // BATCH}


def test_an_epoch_reads_each_row_once_and_the_next_one_in_another_order(shards):
    steps = 139 // BATCH
    batches = training(shards, steps=3 * steps)
    rows = [torch.cat([batch.user for batch in batches[k : k + steps]]).tolist() for k in (0, steps, 2 * steps)]
    for epoch in rows:
        assert len(set(epoch)) == len(epoch) == steps * BATCH
        assert set(epoch) <= set(range(139))
        assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.5
    for one, other in itertools.combinations(rows, 2):
        assert np.mean(np.array(one) == np.array(other)) < 0.1
        assert set(one) != set(other), "other rows are left out"


def test_a_batch_holds_the_rows_that_the_files_hold(shards):
    for batch in training(shards):
        for sample in samples(batch):
            item, tags, number, missing, label, weight, row, _ = sample
            assert missing == [row % 5 == 0, row % 7 == 0 or row % 4 == 0, row % 3 == 0]
            assert ([len(item)], number) == ([row % 5 != 0], [0 if row % 3 == 0 else row / 8])
            assert len(tags) == (0 if row % 7 == 0 else row % 4)
            assert (label, weight) == (row % 2, 1)


def test_seeds_have_orders_of_their_own(shards):
    assert training(shards, steps=1, seed=3)[0].user.tolist() != training(shards, steps=1, seed=4)[0].user.tolist()


def test_the_sample_index_is_the_place_in_the_run(shards):
    for step, batch in enumerate(training(shards)):
        assert batch.sample_index.tolist() == list(range(step * BATCH, (step + 1) * BATCH))
    for step, batch in enumerate(training(shards, WorkerContext(2, 4))):
        assert batch.sample_index.tolist() == list(range(step * BATCH + 8, step * BATCH + 12))


@pytest.mark.parametrize("workers", [1, 4])
def test_reading_resumes_at_any_step(shards, workers):
    worker = WorkerContext(workers - 1, workers)
    reader = TrainingReader(SCHEMA, shards, 3, BATCH, worker)
    whole = [samples(batch) for batch in training(shards, worker)]
    for step in range(len(whole)):
        rest = training(shards, worker, reader.position(step), len(whole) - step)
        assert [samples(batch) for batch in rest] == whole[step:]


@pytest.mark.parametrize("files", [{"a": (139, 139)}, {"a": (139, 1)}, {"a": (16, 3)}], ids=["one", "tiny", "a step"])
def test_row_groups_may_be_few_or_tiny(tmp_path, files):
    shards = write(tmp_path, files)
    alone = training(shards)
    parts = zip(*(training(shards, WorkerContext(rank, 8)) for rank in range(8)), strict=True)
    steps = shards.rows // BATCH
    assert [torch.cat([piece.user for piece in pieces]).tolist() for pieces in parts] == [
        one.user.tolist() for one in alone
    ]
    assert len({row for batch in alone[:steps] for row in batch.user.tolist()}) == steps * BATCH


@pytest.mark.parametrize(
    ("batch_size", "worker", "text"),
    [
        (20, WorkerContext(), r"train\.batch_size is 20; it must be a multiple of data\.lanes \(8\)"),
        (16, WorkerContext(0, 3), r"3 workers do not divide data\.lanes \(8\)"),
        (16, WorkerContext(0, 16), r"16 workers do not divide data\.lanes \(8\)"),
        (144, WorkerContext(), "has 139 rows, fewer than one batch of 144"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shards, batch_size, worker, text):
    with pytest.raises(InputError, match=text):
        TrainingReader(SCHEMA, shards, 3, batch_size, worker)


def test_columns_are_checked_before_the_first_batch(tmp_path):
    shards = write(tmp_path, price=lambda number: number.astype(str))
    for reader in (lambda: TrainingReader(SCHEMA, shards, 3, BATCH), lambda: EvaluationReader(SCHEMA, shards, BATCH)):
        with pytest.raises(InputError, match=r"a\.parquet: column price is string"):
            reader()


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_reader_that_is_closed_leaves_no_thread(shards, taken):
    batches = TrainingReader(SCHEMA, shards, 3, BATCH).batches(Position())
    for _ in range(taken):
        next(batches)
    assert reading_threads()
    batches.close()
    assert not reading_threads()


def test_a_wrong_value_reaches_the_consumer_with_its_place(tmp_path):
    shards = write(tmp_path, label=lambda number: np.where(number == 77, 2.0, number % 2))
    place = r"b\.parquet, row group 0, column label, row 7: label 2\.0"
    with pytest.raises(InputError, match=place):
        training(shards)
    with pytest.raises(InputError, match=place):
        list(EvaluationReader(SCHEMA, shards, BATCH).batches())
    assert not reading_threads()


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("workers", [1, 3, 8, 11])
def test_evaluation_reads_every_row_once_in_order(tmp_path, workers, batch_size):
    shards = write(tmp_path, {"a": (7, 3), "b": (2, 2)})
    readers = [EvaluationReader(SCHEMA, shards, batch_size, WorkerContext(rank, workers)) for rank in range(workers)]
    assert len({len(reader) for reader in readers}) == 1
    rows = []
    for reader in readers:
        batches = list(reader.batches())
        assert len(batches) == len(reader)
        for batch in batches:
            assert len(batch) == max(1, batch_size // workers)
            assert batch.sample_index[: batch.num_samples].tolist() == batch.user[: batch.num_samples].tolist()
            assert batch.missing[batch.num_samples :].all()
            assert not batch.weight[batch.num_samples :].any()
            assert not batch.ids.lengths().view(2, -1)[:, batch.num_samples :].any()
            rows += batch.user[: batch.num_samples].tolist()
    assert rows == list(range(9))


def test_evaluation_gives_the_rows_as_they_are_in_the_files(shards):
    found = [sample for batch in EvaluationReader(SCHEMA, shards, 139).batches() for sample in samples(batch)]
    halves = [
        sample
        for rank in range(2)
        for batch in EvaluationReader(SCHEMA, shards, 10, WorkerContext(rank, 2)).batches()
        for sample in samples(batch)[: batch.num_samples]
    ]
    assert found == halves
    assert [sample[-2] for sample in found] == list(range(139))


def test_evaluation_decodes_only_the_rows_of_the_worker(tmp_path):
    """A wrong value stops the workers whose rows are in its row group, and no other, though all take the same steps."""
    shards = write(tmp_path, label=lambda number: np.where(number == 3, 2.0, number % 2))
    with pytest.raises(InputError, match=r"a\.parquet, row group 0, column label, row 3"):
        list(EvaluationReader(SCHEMA, shards, 64, WorkerContext(0, 64)).batches())
    last = list(EvaluationReader(SCHEMA, shards, 64, WorkerContext(63, 64)).batches())
    assert torch.cat([batch.user[: batch.num_samples] for batch in last]).tolist() == [136, 137, 138]
