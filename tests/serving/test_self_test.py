"""The self-test of an export: a host whose scores differ does not serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import Export, load_export
from asymdiffrec.serving.request_schema import RequestSchema
from asymdiffrec.serving.self_test import synthetic_samples


def change_one_expected_score(export: Export) -> None:
    export.card["self_test"]["scores"][3] += 0.01


def set_a_weight_to_nan(export: Export) -> None:
    with torch.no_grad():
        export.model.diffusion.head[0].bias[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_one_expected_score, "self-test failed: the scores differ by 0.01 from the scores at export"),
        (set_a_weight_to_nan, "self-test failed: the scores differ by inf"),
        (lambda export: export.card.pop("self_test"), "card.json has no valid self-test"),
        (lambda export: export.card["self_test"].update(samples=[3]), "card.json has no valid self-test"),
    ],
)
def test_export_whose_self_test_fails_is_not_served(
    exported: Path, spoil: Callable[[Export], object], message: str
) -> None:
    export = load_export(exported)
    Engine(export).warm_up()
    spoil(export)
    with pytest.raises(InputError, match=message):
        Engine(export).warm_up()


def test_synthetic_samples_fit_their_schema() -> None:
    fields = {
        "word": {"type": "id", "num_embeddings": 10, "values": "string"},
        "row": {"type": "id", "num_embeddings": 3, "hash": False, "column": "place"},
        "likes": {"type": "id_list", "num_embeddings": 2**40, "weights": "shares"},
        "words": {"type": "id_list", "num_embeddings": 5, "values": "string"},
        "price": {"type": "number"},
    }
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    samples = synthetic_samples(schema)
    assert samples == synthetic_samples(schema)
    table = RequestSchema(schema).table(samples)
    assert set(table.column_names) == {"word", "place", "likes", "shares", "words", "price"}
    assert all(0 < table[name].null_count < len(table) for name in table.column_names)
