"""A reader that stops and continues, with any number of workers, yields the samples of an uninterrupted reader."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets import reader as reader_module
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext, make_epoch
from asymdiffrec.datasets.sample_order import row_checksums
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.shards import Shards, open_shards

LANES = 8


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rows_per_lane = draw(st.integers(1, 5))
    batch_size = LANES * rows_per_lane
    files = draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=3))
    if sum(map(sum, files)) < 2 * batch_size:
        files.append([2 * batch_size])
    return {
        "files": files,
        "batch_size": batch_size,
        "window": draw(st.integers(1, 40)),
        "cache_bytes": draw(st.sampled_from([0, 2**30])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "stops": draw(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4, 8])), min_size=2, max_size=4)),
    }


def write(folder: Any, files: list[list[int]]) -> Shards:
    """Write files with row groups of the given sizes; the column `row` numbers the rows."""
    first = 0
    for index, sizes in enumerate(files):
        writer = None
        for size in sizes:
            number = np.arange(first, first + size)
            table = pa.table(
                {
                    "row": number,
                    "item": pa.array(number * 7, mask=number % 5 == 0),
                    "tags": pa.array([list(range(k, k + k % 4)) for k in number.tolist()], pa.list_(pa.int64())),
                    "price": pa.array(number / 8, mask=number % 3 == 0),
                    "label": number % 2,
                }
            )
            writer = writer or pq.ParquetWriter(folder / f"{index}.parquet", table.schema)
            writer.write_table(table, row_group_size=size)
            first += size
        assert writer is not None
        writer.close()
    return open_shards(str(folder))


def schema_of(window: int) -> Schema:
    return FieldsConfig.model_validate(
        {
            "data": {"user": "row", "lanes": LANES, "window": window},
            "fields": {
                "item": {"type": "id", "num_embeddings": 50},
                "tags": {"type": "id_list", "num_embeddings": 20},
                "price": {"type": "number"},
            },
        }
    ).to_schema()


def samples(batch: Batch) -> list[tuple[Any, ...]]:
    """Return all values of each sample of a batch; the user of a sample is its row number."""
    assert batch.row_checksum == row_checksums(batch.user.numpy())
    bags = [[bag.tolist() for bag in jagged.to_dense()] for jagged in batch.ids.to_dict().values()]
    others = (batch.numeric, batch.missing, batch.label, batch.user, batch.sample_index)
    return list(zip(*bags, *(tensor.tolist() for tensor in others), strict=True))


def read_steps(
    shards: Shards, schema: Schema, case: dict[str, Any], first: int, steps: int, world_size: int
) -> list[Any]:
    """Return the samples of global batches [first, first + steps) of a run, read by new readers."""
    parts = []
    for rank in range(world_size):
        reader = TrainingReader(schema, shards, case["seed"], case["batch_size"], WorkerContext(rank, world_size))
        parts.append([samples(batch) for batch in islice(reader.batches(reader.position(first)), steps)])
    return [sample for step in zip(*parts, strict=True) for part in step for sample in part]


@given(case=cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_stops_and_the_number_of_workers_do_not_change_the_samples(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    shards, schema = write(tmp_path_factory.mktemp("train"), case["files"]), schema_of(case["window"])
    total = sum(steps for steps, _ in case["stops"])
    resumed, first = [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "cache_limit", lambda required, local_world_size: case["cache_bytes"])
        uninterrupted = read_steps(shards, schema, case, 0, total, world_size=1)
        for steps, world_size in case["stops"]:
            resumed += read_steps(shards, schema, case, first, steps, world_size)
            first += steps
    assert resumed == uninterrupted
    assert [sample[-1] for sample in uninterrupted] == list(range(total * case["batch_size"]))
    row_numbers = []
    for step in range(total):
        number, step_in_epoch = divmod(step, make_epoch(schema, shards, case["seed"], case["batch_size"]).steps)
        epoch = make_epoch(schema, shards, case["seed"], case["batch_size"], number)
        row_numbers += epoch.batch_row_numbers(step_in_epoch).tolist()
    assert [sample[-2] for sample in uninterrupted] == row_numbers
