"""What a host finds out before it serves."""

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


def off_by_a_hundredth(export: Export) -> None:
    export.card["check"]["scores"][3] += 0.01


def without_a_number(export: Export) -> None:
    with torch.no_grad():
        export.model.diffusion.head[0].bias[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (off_by_a_hundredth, "scores differ by 0.01 from those when it was exported"),
        (without_a_number, "scores differ by inf"),
        (lambda export: export.card.pop("check"), "its card has no check that can be made"),
        (lambda export: export.card["check"].update(samples=[3]), "its card has no check that can be made"),
    ],
)
def test_a_host_that_scores_otherwise_does_not_serve(
    exported: Path, spoil: Callable[[Export], object], message: str
) -> None:
    export = load_export(exported)
    Engine(export).warm()
    spoil(export)
    with pytest.raises(InputError, match=message):
        Engine(export).warm()


def test_samples_are_made_up_of_any_schema() -> None:
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
