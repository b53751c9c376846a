"""A reader that stops and goes on elsewhere gives the stream of one that never stopped, sample by sample."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext, epoch_of
from asymdiffrec.datasets.sample_order import ledgers
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.shards import Shards, open_shards

LANES = 8


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    per_lane = draw(st.integers(1, 5))
    batch = LANES * per_lane
    files = draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=3))
    if sum(map(sum, files)) < 2 * batch:
        files.append([2 * batch])
    return {
        "files": files,
        "batch": batch,
        "window": draw(st.integers(1, 40)),
        "cache": draw(st.sampled_from([0.0, 1.0])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "stops": draw(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4, 8])), min_size=2, max_size=4)),
    }


def write(folder: Any, files: list[list[int]]) -> Shards:
    """Files of row groups of these sizes, whose rows are numbered."""
    first = 0
    for place, sizes in enumerate(files):
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
            writer = writer or pq.ParquetWriter(folder / f"{place}.parquet", table.schema)
            writer.write_table(table, row_group_size=size)
            first += size
        assert writer is not None
        writer.close()
    return open_shards(str(folder))


def schema_of(window: int, cache: float) -> Schema:
    return FieldsConfig.model_validate(
        {
            "data": {"user": "row", "lanes": LANES, "window": window, "cache": cache},
            "fields": {
                "item": {"type": "id", "num_embeddings": 50},
                "tags": {"type": "id_list", "num_embeddings": 20},
                "price": {"type": "number"},
            },
        }
    ).to_schema()


def samples(batch: Batch) -> list[tuple[Any, ...]]:
    """Everything that a batch says of each of its samples, whose users are the numbers of its rows."""
    assert batch.ledger == ledgers(batch.user.numpy())
    bags = [[bag.tolist() for bag in jagged.to_dense()] for jagged in batch.ids.to_dict().values()]
    others = (batch.numeric, batch.missing, batch.label, batch.user, batch.sample_index)
    return list(zip(*bags, *(tensor.tolist() for tensor in others), strict=True))


def stretch(shards: Shards, schema: Schema, case: dict[str, Any], first: int, steps: int, workers: int) -> list[Any]:
    """The samples of global batches [first, first + steps) of a run, read by new readers on so many workers."""
    parts = []
    for rank in range(workers):
        reader = TrainingReader(schema, shards, case["seed"], case["batch"], WorkerContext(rank, workers))
        parts.append([samples(batch) for batch in islice(reader.batches(reader.position(first)), steps)])
    return [sample for step in zip(*parts, strict=True) for part in step for sample in part]


@given(case=cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_stops_and_other_numbers_of_workers_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    shards, schema = write(tmp_path_factory.mktemp("train"), case["files"]), schema_of(case["window"], case["cache"])
    total = sum(steps for steps, _ in case["stops"])
    whole = stretch(shards, schema, case, 0, total, workers=1)
    resumed, first = [], 0
    for steps, workers in case["stops"]:
        resumed += stretch(shards, schema, case, first, steps, workers)
        first += steps
    assert resumed == whole
    assert [sample[-1] for sample in whole] == list(range(total * case["batch"]))
    numbers = []
    for step in range(total):
        number, place = divmod(step, epoch_of(schema, shards, case["seed"], case["batch"]).steps)
        numbers += epoch_of(schema, shards, case["seed"], case["batch"], number).batch(place).tolist()
    assert [sample[-2] for sample in whole] == numbers  # the users are the numbers of the rows
