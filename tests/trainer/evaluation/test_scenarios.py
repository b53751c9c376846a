"""What scenarios drop, and whom they count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.reader import EvaluationReader
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.seen_ids import seen_ids
from asymdiffrec.datasets.statistics.statistics import MissingPattern, Statistics
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.evaluation import scenarios
from asymdiffrec.trainer.evaluation.evaluate import split_samples
from asymdiffrec.trainer.evaluation.scenarios import Asked, Scenario

ROWS = 4000
SCHEMA = FieldsConfig.model_validate(
    {
        "fields": {
            "user_id": {"type": "id", "num_embeddings": 50, "group": "user"},
            "tags": {"type": "id_list", "num_embeddings": 50, "group": "user"},
            "item_id": {"type": "id", "num_embeddings": 50, "group": "item"},
            "hour": {"type": "number", "group": "context"},
        }
    }
).to_schema(
    Statistics(
        rows={"train": 10},
        label_rate=0.5,
        missing_patterns=[MissingPattern(missing=["user_id", "tags"], rows=3), MissingPattern(missing=[], rows=1)],
    )
)


def dropped(scenario: Scenario, schema: Schema = SCHEMA) -> Tensor:
    """[ROWS, fields]: what it drops of complete samples."""
    layout = FieldLayout.from_widths([1] * len(schema.names))
    process = scenario.process(layout, schema)
    none = torch.zeros(ROWS, layout.num_fields, dtype=torch.bool)
    return none if process is None else process(torch.ones(ROWS, layout.num_fields), none, torch.arange(ROWS))[1]


def test_a_share_of_all_fields_alike_and_of_each_what_was_asked() -> None:
    assert not dropped(scenarios.at_random(0.0, SCHEMA)).any()
    rare, often = (dropped(scenarios.at_random(share, SCHEMA)) for share in (0.2, 0.6))
    assert (rare & ~often).sum() == 0
    torch.testing.assert_close(often.float().mean(0), torch.full((4,), 0.6), atol=0.03, rtol=0)
    drifted = scenarios.drifted({"tags": 0.6, "hour": 1.0}, SCHEMA)
    assert drifted.name == "tags 60%, hour 100%"
    assert torch.equal(dropped(drifted)[:, 1], often[:, 1])
    assert dropped(drifted)[:, SCHEMA.names.index("hour")].all()
    assert not dropped(drifted)[:, 0].any()


def test_a_field_or_a_group_goes_dark_and_nothing_else() -> None:
    names = SCHEMA.names
    assert dropped(scenarios.dark("item_id", SCHEMA)).float().mean(0).tolist() == [n == "item_id" for n in names]
    assert dropped(scenarios.dark("user", SCHEMA)).float().mean(0).tolist() == [n in ("user_id", "tags") for n in names]
    drilled = [scenario.name for scenario in scenarios.drill(SCHEMA)]
    assert drilled == ["user dark", *(f"{name} dark" for name in names)]


def test_fields_go_missing_together_as_in_the_training_rows() -> None:
    step = dropped(scenarios.as_in_data(SCHEMA))
    assert torch.equal(step[:, 0], step[:, 1])
    assert not step[:, 2:].any()
    assert step[:, 0].float().mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(outages=["users"]), "users: neither a group nor a field; there are user, item, context, user_id"),
        (Asked(rates={"users": 0.1}), "users: no such field; there are user_id"),
        (Asked(unseen=["tags"]), "tags: not a field of type id; there are user_id, item_id"),
    ],
)
def test_what_the_schema_lacks(asked: Asked, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked.of(SCHEMA)
    with pytest.raises(InputError, match="no patterns"):
        Asked(as_in_training=True).of(replace(SCHEMA, statistics=None))


def test_only_rows_with_a_new_id_count(tmp_path) -> None:
    schema = FieldsConfig.model_validate(
        {"fields": {"user_id": {"type": "id", "num_embeddings": 1000, "hash": False}, "hour": {"type": "number"}}}
    ).to_schema(Statistics(rows={}, label_rate=0.5))
    users = {"train": [4, 9, None, 4], "test": [4, 5, None, 9, 700]}
    for split, ids in users.items():
        (tmp_path / split).mkdir()
        columns = {
            "user_id": pa.array(ids, pa.int64()),
            "hour": [1.0] * len(ids),
            "label": [0, 1] * 2 + [1] * (len(ids) - 4),
        }
        pq.write_table(pa.table(columns), tmp_path / split / "part.parquet", row_group_size=2)
    seen = seen_ids(schema, open_shards(str(tmp_path / "train")), ["user_id"])
    assert seen["user_id"].tolist() == [4, 9]
    reader = EvaluationReader(schema, open_shards(str(tmp_path / "test")), 4)
    asked = [scenarios.at_random(0.0, schema), scenarios.unseen("user_id", schema)]
    counts, label, *_ = split_samples(reader, asked, seen)
    assert counts[0].all()
    assert np.flatnonzero(counts[1]).tolist() == [1, 4]
    assert label.tolist() == [0, 1, 0, 1, 1]
