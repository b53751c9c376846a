"""The fields that scenarios drop, and the samples that they count."""

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
from asymdiffrec.trainer.evaluation.evaluate import read_samples
from asymdiffrec.trainer.evaluation.scenarios import Scenario, ScenarioOptions

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
    """Return [ROWS, N] bool: the fields that the scenario drops from complete samples."""
    layout = FieldLayout.from_widths([1] * len(schema.names))
    process = scenario.process(layout, schema)
    none = torch.zeros(ROWS, layout.num_fields, dtype=torch.bool)
    return none if process is None else process(torch.ones(ROWS, layout.num_fields), none, torch.arange(ROWS))[1]


def test_one_share_drops_all_fields_equally_and_rates_drop_each_field_by_its_own() -> None:
    assert not dropped(scenarios.drop_at_random(0.0, SCHEMA)).any()
    rare, often = (dropped(scenarios.drop_at_random(share, SCHEMA)) for share in (0.2, 0.6))
    assert (rare & ~often).sum() == 0
    torch.testing.assert_close(often.float().mean(0), torch.full((4,), 0.6), atol=0.03, rtol=0)
    by_field = scenarios.drop_at_rates({"tags": 0.6, "hour": 1.0}, SCHEMA)
    assert by_field.name == "tags 60%, hour 100%"
    assert torch.equal(dropped(by_field)[:, 1], often[:, 1])
    assert dropped(by_field)[:, SCHEMA.names.index("hour")].all()
    assert not dropped(by_field)[:, 0].any()


def test_an_outage_drops_one_field_or_one_group() -> None:
    names = SCHEMA.names
    assert dropped(scenarios.outage("item_id", SCHEMA)).float().mean(0).tolist() == [n == "item_id" for n in names]
    assert dropped(scenarios.outage("user", SCHEMA)).float().mean(0).tolist() == [
        n in ("user_id", "tags") for n in names
    ]
    names_of_drill = [scenario.name for scenario in scenarios.outage_drill(SCHEMA)]
    assert names_of_drill == ["user outage", *(f"{name} outage" for name in names)]


def test_fields_are_dropped_together_as_in_the_training_rows() -> None:
    mask = dropped(scenarios.drop_as_in_training(SCHEMA))
    assert torch.equal(mask[:, 0], mask[:, 1])
    assert not mask[:, 2:].any()
    assert mask[:, 0].float().mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ScenarioOptions(outages=["users"]),
            "users: neither a group nor a field; groups and fields are user, item",
        ),
        (ScenarioOptions(rates={"users": 0.1}), "users: no such field; the fields are user_id"),
        (
            ScenarioOptions(unseen_fields=["tags"]),
            "tags: not a field of type id; fields of type id are user_id",
        ),
    ],
)
def test_scenarios_that_do_not_fit_the_schema(options: ScenarioOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        options.scenarios(SCHEMA)
    with pytest.raises(InputError, match="no patterns"):
        ScenarioOptions(as_in_training=True).scenarios(replace(SCHEMA, statistics=None))


def test_only_rows_with_an_unseen_id_count(tmp_path) -> None:
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
    training_ids = seen_ids(schema, open_shards(str(tmp_path / "train")), ["user_id"])
    assert training_ids["user_id"].tolist() == [4, 9]
    reader = EvaluationReader(schema, open_shards(str(tmp_path / "test")), 4)
    selected = [scenarios.drop_at_random(0.0, schema), scenarios.unseen_ids("user_id", schema)]
    counted, label, *_ = read_samples(reader, selected, training_ids)
    assert counted[0].all()
    assert np.flatnonzero(counted[1]).tolist() == [1, 4]
    assert label.tolist() == [0, 1, 0, 1, 1]
