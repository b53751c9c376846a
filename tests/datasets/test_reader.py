"""Training and evaluation readers: order of rows, resuming, numbers of workers, errors and threads."""

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

BATCH_SIZE, LANES, WINDOW = 16, 8, 6
FILES = {"a": (70, 25), "b": (9, 9), "c": (60, 60)}  # rows, rows per row group
ROWS = 139


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
    """Write files whose column `row` numbers the rows; some values of each field are missing."""
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
    """Return the samples of a batch, with padding, each as one comparable value."""
    lists = [[one.tolist() for one in jagged.to_dense()] for jagged in batch.ids.to_dict().values()]
    dense = [getattr(batch, n).tolist() for n in ("numeric", "missing", "label", "weight", "user", "sample_index")]
    return list(zip(*lists, *dense, strict=True))


def training(shards, worker=None, position=None, steps=20, schema=SCHEMA, seed=3):
    reader = TrainingReader(schema, shards, seed, BATCH_SIZE, worker)
    return list(itertools.islice(reader.batches(position or Position()), steps))


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("window", [1, 6, 4096])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_global_batch_is_the_same_for_any_number_of_workers(shards, world_size, window):
    schema = schema_of(window=window)
    single = training(shards, schema=schema)
    parts = [training(shards, WorkerContext(rank, world_size), schema=schema) for rank in range(world_size)]
    for global_batch, *pieces in zip(single, *parts, strict=True):
        assert {len(piece) for piece in pieces} == {BATCH_SIZE // world_size}
        assert samples(global_batch) == [sample for piece in pieces for sample in samples(piece)]


def test_all_workers_know_the_same_number_of_steps_before_the_first(shards):
    steps = {TrainingReader(SCHEMA, shards, 3, BATCH_SIZE, WorkerContext(rank, 4)).steps_per_epoch for rank in range(4)}
    assert steps == {ROWS // BATCH_SIZE}


def test_an_epoch_reads_each_row_once_and_epochs_differ_in_order(shards):
    steps = ROWS // BATCH_SIZE
    batches = training(shards, steps=3 * steps)
    rows = [torch.cat([batch.user for batch in batches[k : k + steps]]).tolist() for k in (0, steps, 2 * steps)]
    for epoch in rows:
        assert len(set(epoch)) == len(epoch) == steps * BATCH_SIZE
        assert set(epoch) <= set(range(ROWS))
        assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.5
    for one, other in itertools.combinations(rows, 2):
        assert np.mean(np.array(one) == np.array(other)) < 0.1
        assert set(one) != set(other), "each epoch leaves out different rows"


def test_a_batch_holds_the_values_of_the_files(shards):
    for batch in training(shards):
        for sample in samples(batch):
            item, tags, number, missing, label, weight, row, _ = sample
            assert missing == [row % 5 == 0, row % 7 == 0 or row % 4 == 0, row % 3 == 0]
            assert ([len(item)], number) == ([row % 5 != 0], [0 if row % 3 == 0 else row / 8])
            assert len(tags) == (0 if row % 7 == 0 else row % 4)
            assert (label, weight) == (row % 2, 1)


def test_different_seeds_give_different_orders(shards):
    assert training(shards, steps=1, seed=3)[0].user.tolist() != training(shards, steps=1, seed=4)[0].user.tolist()


def test_the_sample_index_counts_the_samples_of_the_run(shards):
    for step, batch in enumerate(training(shards)):
        assert batch.sample_index.tolist() == list(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
    for step, batch in enumerate(training(shards, WorkerContext(2, 4))):
        assert batch.sample_index.tolist() == list(range(step * BATCH_SIZE + 8, step * BATCH_SIZE + 12))


@pytest.mark.parametrize("world_size", [1, 4])
def test_reading_resumes_at_any_step(shards, world_size):
    worker = WorkerContext(world_size - 1, world_size)
    reader = TrainingReader(SCHEMA, shards, 3, BATCH_SIZE, worker)
    uninterrupted = [samples(batch) for batch in training(shards, worker)]
    for step in range(len(uninterrupted)):
        rest = training(shards, worker, reader.position(step), len(uninterrupted) - step)
        assert [samples(batch) for batch in rest] == uninterrupted[step:]


@pytest.mark.parametrize("files", [{"a": (139, 139)}, {"a": (139, 1)}, {"a": (16, 3)}], ids=["one", "tiny", "a step"])
def test_row_groups_can_be_few_or_tiny(tmp_path, files):
    shards = write(tmp_path, files)
    single = training(shards)
    parts = zip(*(training(shards, WorkerContext(rank, 8)) for rank in range(8)), strict=True)
    steps = shards.rows // BATCH_SIZE
    assert [torch.cat([piece.user for piece in pieces]).tolist() for pieces in parts] == [
        batch.user.tolist() for batch in single
    ]
    assert len({row for batch in single[:steps] for row in batch.user.tolist()}) == steps * BATCH_SIZE


@pytest.mark.parametrize(
    ("batch_size", "worker", "text"),
    [
        (20, WorkerContext(), r"train\.batch_size is 20; it must be a multiple of data\.lanes \(8\)"),
        (16, WorkerContext(0, 3), r"data\.lanes is 8; it must be a multiple of the number of workers \(3\)"),
        (16, WorkerContext(0, 16), r"data\.lanes is 8; it must be a multiple of the number of workers \(16\)"),
        (144, WorkerContext(), "has 139 rows, fewer than one batch of 144"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_an_error(shards, batch_size, worker, text):
    with pytest.raises(InputError, match=text):
        TrainingReader(SCHEMA, shards, 3, batch_size, worker)


def test_columns_are_checked_before_the_first_batch(tmp_path):
    shards = write(tmp_path, price=lambda number: number.astype(str))
    for reader in (
        lambda: TrainingReader(SCHEMA, shards, 3, BATCH_SIZE),
        lambda: EvaluationReader(SCHEMA, shards, BATCH_SIZE),
    ):
        with pytest.raises(InputError, match=r"a\.parquet: column price is string"):
            reader()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_closed_reader_leaves_no_thread(shards, steps):
    batches = TrainingReader(SCHEMA, shards, 3, BATCH_SIZE).batches(Position())
    for _ in range(steps):
        next(batches)
    assert reading_threads()
    batches.close()
    assert not reading_threads()


def test_the_consumer_gets_the_error_for_a_wrong_value_with_its_location(tmp_path):
    shards = write(tmp_path, label=lambda number: np.where(number == 77, 2.0, number % 2))
    location = r"b\.parquet, row group 0, column label, row 7: label 2\.0"
    with pytest.raises(InputError, match=location):
        training(shards)
    with pytest.raises(InputError, match=location):
        list(EvaluationReader(SCHEMA, shards, BATCH_SIZE).batches())
    assert not reading_threads()


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("world_size", [1, 3, 8, 11])
def test_evaluation_reads_every_row_once_in_order(tmp_path, world_size, batch_size):
    shards = write(tmp_path, {"a": (7, 3), "b": (2, 2)})
    workers = [WorkerContext(rank, world_size) for rank in range(world_size)]
    readers = [EvaluationReader(SCHEMA, shards, batch_size, worker) for worker in workers]
    assert len({len(reader) for reader in readers}) == 1
    rows = []
    for reader in readers:
        batches = list(reader.batches())
        assert len(batches) == len(reader)
        for batch in batches:
            assert len(batch) == max(1, batch_size // world_size)
            assert batch.sample_index[: batch.num_samples].tolist() == batch.user[: batch.num_samples].tolist()
            assert batch.missing[batch.num_samples :].all()
            assert not batch.weight[batch.num_samples :].any()
            assert not batch.ids.lengths().view(2, -1)[:, batch.num_samples :].any()
            rows += batch.user[: batch.num_samples].tolist()
    assert rows == list(range(9))


def test_evaluation_gives_the_rows_in_the_order_of_the_files(shards):
    all_samples = [sample for batch in EvaluationReader(SCHEMA, shards, ROWS).batches() for sample in samples(batch)]
    halves = [
        sample
        for rank in range(2)
        for batch in EvaluationReader(SCHEMA, shards, 10, WorkerContext(rank, 2)).batches()
        for sample in samples(batch)[: batch.num_samples]
    ]
    assert all_samples == halves
    assert [sample[-2] for sample in all_samples] == list(range(ROWS))


def test_evaluation_decodes_only_the_rows_of_the_worker(tmp_path):
    """A wrong value stops only the workers with rows in its row group, although all workers take the same steps."""
    shards = write(tmp_path, label=lambda number: np.where(number == 3, 2.0, number % 2))
    with pytest.raises(InputError, match=r"a\.parquet, row group 0, column label, row 3"):
        list(EvaluationReader(SCHEMA, shards, 64, WorkerContext(0, 64)).batches())
    last = list(EvaluationReader(SCHEMA, shards, 64, WorkerContext(63, 64)).batches())
    assert torch.cat([batch.user[: batch.num_samples] for batch in last]).tolist() == [136, 137, 138]
