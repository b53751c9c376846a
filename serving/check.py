"""Whether a host scores as the one that exported did: on samples that are made up of the schema alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from asymdiffrec.datasets.batch import Batch, to_batch
from asymdiffrec.datasets.rows import decode
from asymdiffrec.datasets.schema import IdListConfig, NumberConfig, Schema
from asymdiffrec.serving.form import Form

SAMPLES = 32
MISSING = 0.3
"""Of their fields"""
TOLERANCE = 1e-4
"""Of a score: processors add in other orders"""


class Scores(Protocol):
    def score(self, batch: Batch) -> torch.Tensor: ...


def check_of(model: Scores, schema: Schema) -> dict[str, Any]:
    """Samples and the model's scores of them."""
    samples = made_up(schema)
    return {"samples": samples, "scores": scores_of(model, schema, samples).tolist()}


def difference(model: Scores, schema: Schema, check: Mapping[str, Any]) -> float:
    """The largest one between the model's scores and those of a check; inf where one is no number."""
    found = np.abs(scores_of(model, schema, check["samples"]) - np.array(check["scores"], np.float32))
    return float(found.max()) if np.isfinite(found).all() else np.inf


@torch.inference_mode()
def scores_of(model: Scores, schema: Schema, samples: Sequence[Any]) -> np.ndarray:
    """Probabilities of a 1 [B] float32 of samples as a request has them."""
    rows = decode(Form(schema).table(samples), schema, "check", labelled=False)
    scores: np.ndarray = model.score(to_batch(rows, schema, 0)).sigmoid().numpy()
    return scores


def made_up(schema: Schema) -> list[dict[str, Any]]:
    """Samples that are drawn, the same for the same schema: of what users did nothing is in them."""
    rng = np.random.default_rng(0)

    def ids(field: Any, count: int) -> list[Any]:
        found = rng.integers(min(field.rows, 2**31), size=count).tolist()
        return [str(one) for one in found] if field.values == "string" else found

    def one(name: str, field: Any) -> dict[str, Any]:
        column = schema.column(name)
        if isinstance(field, NumberConfig):
            return {column: round(float(rng.normal()), 3)}
        if not isinstance(field, IdListConfig):
            return {column: ids(field, 1)[0]}
        count = int(rng.integers(1, 6))
        weights = {field.weights: [1.0] * count} if field.weights else {}
        return {column: ids(field, count), **weights}

    return [
        {
            key: value
            for name, field in schema.fields.items()
            if rng.random() >= MISSING
            for key, value in one(name, field).items()
        }
        for _ in range(SAMPLES)
    ]
