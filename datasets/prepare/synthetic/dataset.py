"""Prepare a synthetic click log. Its true click probabilities are known, so the best possible AUC is known too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import require_absent
from asymdiffrec.datasets.prepare.synthetic.click_model import (
    BRANDS,
    CATEGORIES,
    DEVICES,
    ITEMS,
    TAGS,
    USERS,
    ClickLog,
    ClickModel,
    draw_log,
    make_click_model,
)
from asymdiffrec.datasets.prepare.synthetic.optimal_scores import optimal_scores
from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.datasets.statistics.field_auc import roc_auc

MIN_ROWS = 1000
BLOCK_ROWS = 131_072

DATA: dict[str, Any] = {"path": ".", "label": "label", "user": "user", "time": "timestamp"}
FIELDS: dict[str, dict[str, Any]] = {
    "user_id": {"type": "id", "group": "user", "num_embeddings": USERS, "hash": False},
    "history": {"type": "id_list", "group": "user", "num_embeddings": ITEMS, "hash": False, "table": "item_id"},
    "age": {"type": "number", "group": "user"},
    "gender": {"type": "id", "group": "user", "num_embeddings": 2, "hash": False},
    "income": {"type": "number", "group": "user"},
    "city": {"type": "id", "group": "user", "num_embeddings": 10_000, "values": "string"},
    "item_id": {"type": "id", "group": "item", "num_embeddings": ITEMS, "hash": False},
    "category": {"type": "id", "group": "item", "num_embeddings": CATEGORIES, "hash": False},
    "brand": {"type": "id", "group": "item", "num_embeddings": BRANDS, "hash": False},
    "price": {"type": "number", "group": "item"},
    "tags": {"type": "id_list", "group": "item", "num_embeddings": TAGS, "hash": False},
    "hour": {"type": "id", "group": "context", "num_embeddings": 24, "hash": False},
    "weekday": {"type": "id", "group": "context", "num_embeddings": 7, "hash": False},
    "device": {"type": "id", "group": "context", "num_embeddings": DEVICES, "hash": False},
    "position": {"type": "number", "group": "context"},
}
TRAIN: dict[str, Any] = {"train": {"epochs": 8, "log_every": 100}}


def prepare_synthetic(out: Path, *, rows: int = 400_000, seed: int = 0) -> dict[str, Any]:
    """Write a synthetic click log of `rows` samples as a data set to the new folder `out` and return its profile.

    80 % of the samples are training rows, 10 % validation rows and 10 % test rows. The log is a deterministic function
    of `rows` and `seed`. Its 15 fields form three groups. There are three kinds of missing fields:
    - single fields, at random;
    - all fields of a group together (an outage);
    - fields that are missing more often in some samples: income of young or rich users, history of rare users, price of
      cheap items, position for one of the devices.

    profile["optimal_auc"] has two entries, both for the test split. `observed` is the best AUC of a model that sees
    only the recorded fields: compare trained models with it. `complete` is the AUC of the true click probabilities.

    Raises InputError if `out` exists or `rows` is below 1000.
    """
    require_absent(out)
    if rows < MIN_ROWS:
        raise InputError(f"rows: found {rows}; a synthetic log needs at least {MIN_ROWS} rows")
    model = make_click_model(seed)
    sizes = {"train": rows - 2 * (rows // 10), "valid": rows // 10, "test": rows // 10}
    # Samples are independent, so drawing one split after the other is equivalent to a random split.
    splits = {
        split: map(partial(recorded_table, model), draw_split(model, seed, split, size))
        for split, size in sizes.items()
    }
    optimal_auc = _optimal_auc(model, draw_split(model, seed, "test", sizes["test"]), seed)
    job = {"name": "synthetic", "data": DATA, "fields": FIELDS, **TRAIN}
    profile = {"optimal_auc": optimal_auc, "generator": {"rows": rows, "seed": seed}}
    return write_dataset(out, splits, job, profile=profile)


def draw_split(model: ClickModel, seed: int, split: str, rows: int) -> Iterator[ClickLog]:
    """Yield the samples of a split in the order of its files, in blocks of up to BLOCK_ROWS."""
    for start in range(0, rows, BLOCK_ROWS):
        rng = np.random.default_rng([seed, 1, *split.encode(), start])
        yield draw_log(model, min(BLOCK_ROWS, rows - start), rng)


def _optimal_auc(model: ClickModel, blocks: Iterator[ClickLog], seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 2])
    parts = [(log.label, log.probability, optimal_scores(model, log, rng)) for log in blocks]
    label, complete, observed = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"observed": roc_auc(label, observed), "complete": roc_auc(label, complete)}


def recorded_table(model: ClickModel, log: ClickLog) -> pa.Table:
    """Return the recorded fields of a log. A missing history is an empty list, any other missing field is null."""
    recorded = (log.history >= 0) & ~log.missing["history"][:, None]
    offsets = np.concatenate([[0], np.cumsum(recorded.sum(axis=1))]).astype(np.int32)
    columns = {"history": pa.ListArray.from_arrays(pa.array(offsets), pa.array(log.history[recorded]))}
    for group, population in model.groups.items():
        for field, values in population.columns.items():
            columns[field] = values.take(pa.array(log.members[group], mask=log.missing[field]))
    fields = {name: columns[name] for name in FIELDS}
    return pa.table({**fields, "user": log.members["user"], "timestamp": log.time, "label": log.label})
