"""A synthetic click log whose ground truth is known, so that training can be held against the best possible result."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import require_absent
from asymdiffrec.datasets.prepare.output import write_dataset
from asymdiffrec.datasets.prepare.synthetic.ceiling import auc, observed_probability
from asymdiffrec.datasets.prepare.synthetic.world import (
    BRANDS,
    CATEGORIES,
    DEVICES,
    ITEMS,
    TAGS,
    USERS,
    Log,
    World,
    draw_log,
    make_world,
)

FEWEST_ROWS = 1000
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
SETTINGS: dict[str, Any] = {"train": {"epochs": 8, "log_every": 100}}


def prepare_synthetic(out: Path, *, rows: int = 400_000, seed: int = 0) -> dict[str, Any]:
    """Write a click log of `rows` samples (train, valid and test 80/10/10) to the new folder `out`; gives its profile.

    The same `rows` and `seed` give the same log. Its 15 fields come in three groups and are missing at random, missing
    together (a whole group dark), and missing depending on the sample: income more often of the young and of the rich,
    history of rare users, price of cheap items, position on one device.

    profile["ceiling"] tells what can be reached on the test split: `auc_complete`, of the true click probabilities, and
    `auc_observed`, of their expectation given what was recorded, which is the one to hold training against.
    Raises InputError where `out` exists or `rows` is below 1000.
    """
    require_absent(out)
    if rows < FEWEST_ROWS:
        raise InputError(f"rows: found {rows}; a synthetic log has at least {FEWEST_ROWS}")
    world = make_world(seed)
    sizes = {"train": rows - 2 * (rows // 10), "valid": rows // 10, "test": rows // 10}
    # Samples are independent, so that drawing the splits one after another is splitting at random.
    splits = {split: map(partial(record, world), logs(world, seed, split, size)) for split, size in sizes.items()}
    ceiling = _ceiling(world, logs(world, seed, "test", sizes["test"]), seed)
    job = {"name": "synthetic", "data": DATA, "fields": FIELDS, **SETTINGS}
    return write_dataset(out, splits, job, profile={"ceiling": ceiling, "generator": {"rows": rows, "seed": seed}})


def logs(world: World, seed: int, split: str, rows: int) -> Iterator[Log]:
    """The samples of a split in the order of its files, in blocks."""
    for start in range(0, rows, BLOCK_ROWS):
        rng = np.random.default_rng([seed, 1, *split.encode(), start])
        yield draw_log(world, min(BLOCK_ROWS, rows - start), rng)


def _ceiling(world: World, drawn: Iterator[Log], seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 2])
    parts = [(log.label, log.probability, observed_probability(world, log, rng)) for log in drawn]
    label, complete, observed = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"auc_observed": auc(label, observed), "auc_complete": auc(label, complete)}


def record(world: World, log: Log) -> pa.Table:
    """What is written of a log. A history that was not recorded is an empty list, any other field null."""
    kept = (log.history >= 0) & ~log.missing["history"][:, None]
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    columns = {"history": pa.ListArray.from_arrays(pa.array(offsets), pa.array(log.history[kept]))}
    for group, population in world.groups.items():
        for field, values in population.columns.items():
            columns[field] = values.take(pa.array(log.members[group], mask=log.missing[field]))
    named = {name: columns[name] for name in FIELDS}
    return pa.table({**named, "user": log.members["user"], "timestamp": log.time, "label": log.label})
