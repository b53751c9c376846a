"""Whether a host scores as the one that exported did: on samples that are made up of the schema alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asymdiffrec.datasets.batching.batch import to_batch
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import IdListConfig, NumericFieldConfig, Schema
from asymdiffrec.datasets.statistics.statistics import NumericStatistics
from asymdiffrec.serving.batch_prediction import BatchScorer
from asymdiffrec.serving.request_schema import RequestSchema

SAMPLES = 32
MISSING = 0.3
"""Of their fields"""
TOLERANCE = 1e-4
"""Of a score: processors add in other orders"""


def make_self_test(model: BatchScorer, schema: Schema) -> dict[str, Any]:
    """Samples and the model's scores of them."""
    samples = synthetic_samples(schema)
    return {"samples": samples, "scores": scores_of(model, schema, samples).tolist()}


def difference(model: BatchScorer, schema: Schema, check: Mapping[str, Any]) -> float:
    """The largest one between the model's scores and those of a check; inf where one is no number."""
    found = np.abs(scores_of(model, schema, check["samples"]) - np.array(check["scores"], np.float32))
    return float(found.max()) if np.isfinite(found).all() else np.inf


@torch.inference_mode()
def scores_of(model: BatchScorer, schema: Schema, samples: Sequence[Any]) -> np.ndarray:
    """Probabilities of a 1 [B] float32 of samples as a request has them."""
    rows = decode(RequestSchema(schema).table(samples), schema, "check", labelled=False)
    scores: np.ndarray = model.score(to_batch(rows, schema, 0)).sigmoid().numpy()
    return scores


def synthetic_samples(schema: Schema) -> list[dict[str, Any]]:
    """Samples that are drawn, the same for the same schema: of what users did nothing is in them."""
    rng = np.random.default_rng(0)

    def ids(field: Any, count: int) -> list[Any]:
        found = rng.integers(min(field.num_embeddings, 2**31), size=count).tolist()
        return [str(one) for one in found] if field.values == "string" else found

    def one(name: str, field: Any, count: int) -> dict[str, Any]:
        column = schema.column(name)
        if isinstance(field, NumericFieldConfig):
            return {column: _number(schema.numeric_statistics(name), float(rng.normal()), field.transform)}
        if not isinstance(field, IdListConfig):
            return {column: ids(field, 1)[0]}
        weights = {field.weights: [1.0] * count} if field.weights else {}
        return {column: ids(field, count), **weights}

    samples = []
    for _ in range(SAMPLES):
        sample: dict[str, Any] = {}
        count = int(rng.integers(1, 6))  # of all lists, whose weights may be one column
        for name, field in schema.fields.items():
            if rng.random() >= MISSING:
                sample |= one(name, field, count)
        samples.append(sample)
    shared = [name for name in schema.columns(labelled=False) if _has_an_id_and_a_number(schema, name)]
    return [{**sample, **{name: int(sample[name]) for name in shared if name in sample}} for sample in samples]


def _has_an_id_and_a_number(schema: Schema, column: str) -> bool:
    kinds = {
        isinstance(field, NumericFieldConfig) for name, field in schema.fields.items() if schema.column(name) == column
    }
    return len(kinds) == 2


def _number(moments: NumericStatistics, normal: float, transform: str) -> float:
    """A number that standardises to a normal one, as near as its transform can be undone."""
    value = moments.mean + moments.std * normal
    if transform == "log1p":
        return float(np.copysign(np.expm1(min(abs(value), 80)), value))
    if transform == "log_squared":
        return float(np.exp(min(np.sqrt(value), 80))) if value > np.log(2) ** 2 else min(value, 2.0)
    return value
