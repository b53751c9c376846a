"""MovieLens 100K and 1M (Harper and Konstan 2015): ratings of films as click samples, with features of the past."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.files.atomic import require_absent
from asymdiffrec.datasets.prepare.movielens.files import Ratings, Variant, read_ratings
from asymdiffrec.datasets.prepare.movielens.past import Past, past_of
from asymdiffrec.datasets.prepare.output import write_dataset

LIKED = 4
LONGEST_HISTORY = 20
AGES = np.array([1, 18, 25, 35, 45, 50, 56])
"""First years of the age brackets of 1M; the ages in 100K are put into the same brackets"""

DATA: dict[str, Any] = {"path": ".", "label": "label", "user": "user_id", "time": "timestamp"}
SETTINGS: dict[str, Any] = {"train": {"epochs": 15, "learning_rate": 0.002, "validation": {"patience": 3}}}
"""Chosen by validation AUC on the splits of two seeds"""


def prepare_movielens(
    out: Path,
    *,
    variant: Variant = "100k",
    input: Path | None = None,
    split: Literal["random", "temporal"] = "random",
    seed: int = 0,
) -> dict[str, Any]:
    """Write MovieLens as a data set (train, valid and test 80/10/10) to the new folder `out`; gives its profile.

    `input` is the folder or the zip file of MovieLens; without it the archive is downloaded from GroupLens and its MD5
    checksum verified. A sample is a rating, its label whether it is at least 4. Beside what is known of the user, the
    film and the time, it has features of the past: the films that the user liked last (`history`), how often the user
    and the film were rated so far (`user_count`, `item_count`, as log(1 + count)), and which share of these were likes
    (`user_like_rate`, `item_like_rate`, pulled towards 1/2; missing where there was none).

    The past of a sample is what has a strictly smaller time stamp. In a `temporal` split (train before valid before
    test, ratings of the same second together) that is every earlier rating. In a `random` split a test rating may lie
    before a training one, so that only the training ratings belong to the past of any sample: no feature of any sample
    depends on a rating of the validation or test split.

    Raises InputError where `out` exists, `input` is not MovieLens, or the archive cannot be had.
    """
    require_absent(out)
    ratings = read_ratings(variant, input)
    part = _random_split(len(ratings.time), seed) if split == "random" else _temporal_split(ratings.time)
    table = features(ratings, known=part == 0 if split == "random" else np.full(len(part), True))
    splits = {name: [table.filter(pa.array(part == place))] for place, name in enumerate(("train", "valid", "test"))}
    job = {"name": f"movielens-{variant}", "data": DATA, "fields": _fields(ratings), **SETTINGS}
    return write_dataset(out, splits, job)


def features(ratings: Ratings, known: np.ndarray) -> pa.Table:
    """The samples, a row a rating; only the ratings where `known` [R] bool belong to the past of others."""
    liked = ratings.rating >= LIKED
    by_user, by_item = (past_of(key, ratings.time, known) for key in (ratings.user, ratings.item))
    users, items = ratings.users.take(ratings.user_place), ratings.items.take(ratings.item_place)
    return pa.table(
        {
            "user_id": ratings.user,
            "age": AGES[np.searchsorted(AGES, users["age"].to_numpy(), side="right") - 1],
            "gender": users["gender"],
            "occupation": users["occupation"],
            "zip_prefix": pc.utf8_slice_codeunits(users["zip"], 0, 3),
            "user_count": np.log1p(by_user.count()),
            "user_like_rate": _like_rate(by_user, liked),
            "history": past_of(ratings.user, ratings.time, known & liked).last(ratings.item, LONGEST_HISTORY),
            "item_id": ratings.item,
            "genres": items["genres"],
            "release_year": items["year"],
            "item_count": np.log1p(by_item.count()),
            "item_like_rate": _like_rate(by_item, liked),
            "hour": ratings.time // 3600 % 24,
            "weekday": (ratings.time // 86400 + 3) % 7,  # 1970 began on a Thursday; Monday is 0
            "timestamp": ratings.time,
            "label": liked.astype(np.int8),
        }
    )


def _like_rate(past: Past, liked: np.ndarray) -> pa.Array:
    count = past.count()
    return pa.array((past.total(liked) + 2) / (count + 4), mask=count == 0)


def _random_split(rows: int, seed: int) -> np.ndarray:
    """0, 1 or 2 for train, valid or test, [R]."""
    part = np.zeros(rows, dtype=np.int8)
    order = np.random.default_rng(seed).permutation(rows)
    part[order[: rows // 10]] = 2
    part[order[rows // 10 : rows // 10 * 2]] = 1
    return part


def _temporal_split(time: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for train, valid or test, [R]; `time` ascends."""
    borders = time[[len(time) * 8 // 10, len(time) * 9 // 10]]
    return np.searchsorted(borders, time, side="right")


def _fields(ratings: Ratings) -> dict[str, dict[str, Any]]:
    """Strings are hashed into rows enough that a collision is unlikely."""
    users, items = (int(ids.to_numpy().max()) + 1 for ids in (ratings.users["user_id"], ratings.items["item_id"]))
    return {
        "user_id": {"type": "id", "group": "user", "num_embeddings": users, "hash": False},
        "age": {"type": "id", "group": "user", "num_embeddings": int(AGES[-1]) + 1, "hash": False},
        "gender": {"type": "id", "group": "user", "num_embeddings": 1000, "values": "string"},
        "occupation": {"type": "id", "group": "user", "num_embeddings": 10_000, "values": "string"},
        "zip_prefix": {"type": "id", "group": "user", "num_embeddings": 100_000, "values": "string"},
        "user_count": {"type": "number", "group": "user"},
        "user_like_rate": {"type": "number", "group": "user"},
        "history": {"type": "id_list", "group": "user", "num_embeddings": items, "hash": False, "table": "item_id"},
        "item_id": {"type": "id", "group": "item", "num_embeddings": items, "hash": False},
        "genres": {"type": "id_list", "group": "item", "num_embeddings": 10_000, "values": "string"},
        "release_year": {"type": "number", "group": "item"},
        "item_count": {"type": "number", "group": "item"},
        "item_like_rate": {"type": "number", "group": "item"},
        "hour": {"type": "id", "group": "context", "num_embeddings": 24, "hash": False},
        "weekday": {"type": "id", "group": "context", "num_embeddings": 7, "hash": False},
    }
