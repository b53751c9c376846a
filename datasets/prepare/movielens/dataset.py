"""Prepare MovieLens 100K and 1M (Harper and Konstan 2015): one sample per rating, with features of earlier ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.files.atomic import require_absent
from asymdiffrec.datasets.prepare.movielens.files import Ratings, Size, read_ratings
from asymdiffrec.datasets.prepare.movielens.past_events import PastEvents, past_events
from asymdiffrec.datasets.prepare.write_dataset import write_dataset

MIN_LIKED_RATING = 4
MAX_HISTORY = 20
AGE_BRACKETS = np.array([1, 18, 25, 35, 45, 50, 56])
"""Smallest age of each age bracket of MovieLens 1M; the ages in 100K are mapped to the same brackets"""

DATA: dict[str, Any] = {"path": ".", "label": "label", "user": "user_id", "time": "timestamp"}
TRAIN: dict[str, Any] = {"train": {"epochs": 15, "learning_rate": 0.002, "validation": {"patience": 3}}}
"""Settings with the best AUC on the validation rows, for two seeds"""


def prepare_movielens(
    out: Path,
    *,
    size: Size = "100k",
    input: Path | None = None,
    split: Literal["random", "time"] = "random",
    seed: int = 0,
) -> dict[str, Any]:
    """Write MovieLens as a data set to the new folder `out` and return its profile.

    `input` is the folder or zip file of MovieLens. If it is None, the archive is downloaded from GroupLens, and its MD5
    checksum is verified. A sample is a rating; its label is 1 if the rating is at least 4. Its fields are attributes of
    the user, the film and the time, and these features of earlier ratings:
    - `history`: the latest films that the user liked;
    - `user_count`, `item_count`: log(1 + number of earlier ratings) of the user and of the film;
    - `user_like_rate`, `item_like_rate`: the share of likes among the earlier ratings of the user and of the film,
      shrunk towards 1/2; missing without earlier ratings.

    80 % of the ratings are training rows, 10 % validation rows and 10 % test rows, chosen by `split`:
    - time: the latest ratings are test rows, the latest of the other ratings are validation rows. Ratings of the same
      second are in the same split. The features of a sample use all ratings with a strictly smaller time.
    - random: the rows are drawn with `seed`. The features use only training ratings with a strictly smaller time, so no
      feature depends on the label of a validation or test rating.

    Raises InputError if `out` exists, `input` is not MovieLens, or the download fails.
    """
    require_absent(out)
    ratings = read_ratings(size, input)
    split_index = _random_split(len(ratings.time), seed) if split == "random" else _time_split(ratings.time)
    in_past = split_index == 0 if split == "random" else np.full(len(split_index), True)
    samples = make_samples(ratings, in_past)
    splits = {
        name: [samples.filter(pa.array(split_index == index))] for index, name in enumerate(("train", "valid", "test"))
    }
    job = {"name": f"movielens-{size}", "data": DATA, "fields": _fields(ratings), **TRAIN}
    return write_dataset(out, splits, job)


def make_samples(ratings: Ratings, in_past: np.ndarray) -> pa.Table:
    """Return one sample per rating. The features count only the earlier ratings whose `in_past` [R] bool is True."""
    liked = ratings.rating >= MIN_LIKED_RATING
    by_user, by_item = (past_events(key, ratings.time, in_past) for key in (ratings.user, ratings.item))
    users, items = ratings.users.take(ratings.user_row), ratings.items.take(ratings.item_row)
    return pa.table(
        {
            "user_id": ratings.user,
            "age": AGE_BRACKETS[np.searchsorted(AGE_BRACKETS, users["age"].to_numpy(), side="right") - 1],
            "gender": users["gender"],
            "occupation": users["occupation"],
            "zip_prefix": pc.utf8_slice_codeunits(users["zip"], 0, 3),
            "user_count": np.log1p(by_user.count()),
            "user_like_rate": _like_rate(by_user, liked),
            "history": past_events(ratings.user, ratings.time, in_past & liked).last(ratings.item, MAX_HISTORY),
            "item_id": ratings.item,
            "genres": items["genres"],
            "release_year": items["year"],
            "item_count": np.log1p(by_item.count()),
            "item_like_rate": _like_rate(by_item, liked),
            "hour": ratings.time // 3600 % 24,
            "weekday": (ratings.time // 86400 + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
            "timestamp": ratings.time,
            "label": liked.astype(np.int8),
        }
    )


def _like_rate(past: PastEvents, liked: np.ndarray) -> pa.Array:
    """Return (likes + 2) / (ratings + 4) for the earlier ratings of each sample, [R]; null without earlier ratings."""
    count = past.count()
    return pa.array((past.total(liked) + 2) / (count + 4), mask=count == 0)


def _random_split(rows: int, seed: int) -> np.ndarray:
    """Return 0, 1 or 2 for train, valid or test, [R]."""
    split_index = np.zeros(rows, dtype=np.int8)
    order = np.random.default_rng(seed).permutation(rows)
    split_index[order[: rows // 10]] = 2
    split_index[order[rows // 10 : rows // 10 * 2]] = 1
    return split_index


def _time_split(time: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for train, valid or test, [R]; `time` [R] is in ascending order."""
    borders = time[[len(time) * 8 // 10, len(time) * 9 // 10]]
    return np.searchsorted(borders, time, side="right")


def _fields(ratings: Ratings) -> dict[str, dict[str, Any]]:
    """Return the section `fields` of the job file. Tables of strings are large enough to make collisions unlikely."""
    users, items = (int(ids.to_numpy().max()) + 1 for ids in (ratings.users["user_id"], ratings.items["item_id"]))
    ages = int(AGE_BRACKETS[-1]) + 1
    return {
        "user_id": {"type": "id", "group": "user", "num_embeddings": users, "hash": False},
        "age": {"type": "id", "group": "user", "num_embeddings": ages, "hash": False},
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
