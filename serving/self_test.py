"""The self-test of an export: synthetic samples and their scores. A host must reproduce the scores before it serves."""

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

NUM_SAMPLES = 32
MISSING_RATE = 0.3
"""Probability that a field of a synthetic sample is missing"""
MAX_SCORE_DIFFERENCE = 1e-4
"""Allowed difference of a score between two hosts, because processors add floats in different orders"""


def make_self_test(model: BatchScorer, schema: Schema) -> dict[str, Any]:
    """Return synthetic samples and their scores by the model, as JSON values."""
    samples = synthetic_samples(schema)
    return {"samples": samples, "scores": score_samples(model, schema, samples).tolist()}


def score_difference(model: BatchScorer, schema: Schema, self_test: Mapping[str, Any]) -> float:
    """Return the largest difference between the model's scores and the scores in a self-test.

    The difference is inf if a score is not finite. Raises KeyError, TypeError or ValueError if the self-test is
    malformed.
    """
    scores = score_samples(model, schema, self_test["samples"])
    differences = np.abs(scores - np.array(self_test["scores"], np.float32))
    return float(differences.max()) if np.isfinite(differences).all() else np.inf


@torch.inference_mode()
def score_samples(model: BatchScorer, schema: Schema, samples: Sequence[Any]) -> np.ndarray:
    """Return [B] float32: the probability of label 1 for each sample. The samples have the form of a JSON request."""
    rows = decode(RequestSchema(schema).table(samples), schema, "self-test", labelled=False)
    scores: np.ndarray = model.score(to_batch(rows, schema, 0)).sigmoid().numpy()
    return scores


def synthetic_samples(schema: Schema) -> list[dict[str, Any]]:
    """Return synthetic samples, a deterministic function of the schema; they contain no user data."""
    rng = np.random.default_rng(0)

    def draw_ids(field: Any, count: int) -> list[Any]:
        ids = rng.integers(min(field.num_embeddings, 2**31), size=count).tolist()
        return [str(value) for value in ids] if field.values == "string" else ids

    def draw_field(name: str, field: Any, list_length: int) -> dict[str, Any]:
        column = schema.column(name)
        if isinstance(field, NumericFieldConfig):
            return {column: _untransformed(schema.numeric_statistics(name), float(rng.normal()), field.transform)}
        if not isinstance(field, IdListConfig):
            return {column: draw_ids(field, 1)[0]}
        weights = {field.weights: [1.0] * list_length} if field.weights else {}
        return {column: draw_ids(field, list_length), **weights}

    samples = []
    for _ in range(NUM_SAMPLES):
        sample: dict[str, Any] = {}
        # All lists of a sample have the same length, because two fields may name the same column of weights.
        list_length = int(rng.integers(1, 6))
        for name, field in schema.fields.items():
            if rng.random() >= MISSING_RATE:
                sample |= draw_field(name, field, list_length)
        samples.append(sample)
    # A column that both an id field and a numeric field read holds integers.
    shared = [name for name in schema.columns(labelled=False) if _has_id_and_numeric_field(schema, name)]
    return [{**sample, **{name: int(sample[name]) for name in shared if name in sample}} for sample in samples]


def _has_id_and_numeric_field(schema: Schema, column: str) -> bool:
    kinds = {
        isinstance(field, NumericFieldConfig) for name, field in schema.fields.items() if schema.column(name) == column
    }
    return len(kinds) == 2


def _untransformed(moments: NumericStatistics, standardised: float, transform: str) -> float:
    """Return a raw value that the transform and standardisation turn into `standardised`, exactly or approximately."""
    value = moments.mean + moments.std * standardised
    if transform == "log1p":
        return float(np.copysign(np.expm1(min(abs(value), 80)), value))
    if transform == "log_squared":
        return float(np.exp(min(np.sqrt(value), 80))) if value > np.log(2) ** 2 else min(value, 2.0)
    return value
