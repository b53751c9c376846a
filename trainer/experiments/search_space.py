"""The search space of `tune`: choices for values of the job, the first candidates, and descriptions of candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from asymdiffrec.datasets.schema import IdConfig
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.seen_ids import seen_ids
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS
from asymdiffrec.trainer.evaluation.evaluate import evaluation_reader, read_samples
from asymdiffrec.trainer.evaluation.scenarios import unseen_ids
from asymdiffrec.trainer.job import Job, read_statistics

Overrides = Mapping[str, Any]
"""Values of a job by their path, for example {"diffusion.method": "base", "train.learning_rate": 0.001}"""

METHOD = "diffusion.method"
MIN_UNSEEN_SHARE = 0.2
"""The drop factor of an id field is searched if at least this share of validation rows has an unseen id"""


def make_search_space(job: Job) -> dict[str, list[Any]]:
    """Return the choices for each path. Choices of capacity and learning rates are multiples of the job's values.

    A method that appears twice is drawn twice as often.
    """
    hidden = getattr(job.model.extractor, "hidden", None)
    optimizer = job.tables.optimizer.model_dump(mode="json")
    space: dict[str, list[Any]] = {
        METHOD: ["base", "augment", "asymdiff", "asymdiff"],
        "diffusion.weights.recon": [0.0, 0.3],
        "diffusion.weights.aux": [0.3, 1.0],
        "diffusion.weights.distil": [0.0, 0.3, 1.0],
        "train.learning_rate": [scale * job.train.learning_rate for scale in (0.5, 1.0, 2.0)],
        "train.weight_decay": [0.0, 0.01],
        "tables.optimizer": [
            {**optimizer, "learning_rate": scale * optimizer["learning_rate"]} for scale in (0.5, 1.0, 2.0)
        ],
        "tables.embedding_dim": sorted({max(4, job.tables.embedding_dim // 2 // 4 * 4), job.tables.embedding_dim}),
    }
    if job.diffusion.forward.pattern == "uniform":
        space["diffusion.forward.time"] = [
            {"law": "uniform", "low": 0.0, "high": high} for high in (0.3, 0.5, 0.8, 1.0)
        ]
    if job.to_schema().numeric:
        space["tables.numeric_bins"] = sorted({0, 16, job.tables.numeric_bins, MAX_KNOTS})
    if hidden is not None:
        space["model.extractor.hidden"] = [[scale * size for size in hidden] for scale in (1, 2)]
    for name in fields_with_unseen_ids(job):
        space[f"fields.{name}.drop"] = [0.0, 0.3, 1.0]
    return space


def fields_with_unseen_ids(job: Job) -> list[str]:
    """Return the id fields whose id is unseen in training rows for at least `MIN_UNSEEN_SHARE` of validation rows."""
    schema = job.to_schema(read_statistics(job))
    names = [name for name, config in schema.fields.items() if isinstance(config, IdConfig)]
    training_ids = seen_ids(schema, open_shards(job.location("train")), names)
    scenarios = [unseen_ids(name, schema) for name in names]
    samples = read_samples(evaluation_reader(job, schema, "valid"), scenarios, training_ids)
    return [name for name, unseen in zip(names, samples.counted, strict=True) if unseen.mean() >= MIN_UNSEEN_SHARE]


def first_candidates(space: Mapping[str, Sequence[Any]], job: Job) -> list[dict[str, Any]]:
    """Return the candidates that are tried before random candidates.

    They are base, augment and asymdiff with the job's values, and an asymdiff that drops fewer fields.
    """
    defaults = {path: _job_value(path, choices, job) for path, choices in space.items()}
    asymdiff = {**defaults, METHOD: "asymdiff"}
    drops_less = {**asymdiff, "diffusion.weights.distil": 0.0}
    drops_less |= {path: 0.0 for path in space if path.endswith(".drop")}
    if times := space.get("diffusion.forward.time"):
        drops_less["diffusion.forward.time"] = times[1]
    return [{**defaults, METHOD: "base"}, {**defaults, METHOD: "augment"}, asymdiff, drops_less]


def canonical(overrides: Overrides, defaults: Overrides) -> dict[str, Any]:
    """Return the overrides, with the default value for every path that the method ignores.

    Two candidates that train the same model are then equal.
    """
    ignores = {
        "base": lambda path: path.startswith("diffusion.") or path.endswith(".drop"),
        "augment": lambda path: path in ("diffusion.weights.recon", "diffusion.weights.distil"),
    }.get(overrides[METHOD], lambda path: False)
    return {path: defaults[path] if path != METHOD and ignores(path) else value for path, value in overrides.items()}


def describe(overrides: Overrides, defaults: Overrides) -> str:
    """Return a short text for people: the method, and the values that differ from the defaults."""
    changes = []
    for path, value in overrides.items():
        default, short = defaults[path], path.removeprefix("diffusion.")
        if path == METHOD or value == default:
            continue
        if isinstance(value, dict):
            changes += [f"{short}.{key}={json.dumps(part)}" for key, part in value.items() if part != default.get(key)]
        else:
            changes.append(f"{short}={json.dumps(value)}")
    return " ".join([overrides[METHOD], *changes])


def _job_value(path: str, choices: Sequence[Any], job: Job) -> Any:
    """Return the job's value if it is one of the choices, else the last choice."""
    value: Any = job.model_dump(mode="json")
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if value in choices else choices[-1]
