"""The files of MovieLens, from a folder, a zip file, or GroupLens itself, as one set of ratings."""

from __future__ import annotations

import hashlib
import http.client
import io
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from asymdiffrec.base import InputError

Variant = Literal["100k", "1m"]
ARCHIVES = {
    "100k": ("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    "1m": ("https://files.grouplens.org/datasets/movielens/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
}
"""Address and MD5 checksum"""
LARGEST = 1 << 28
INT, TEXT = pa.int64(), pa.string()
RATINGS = {"user": INT, "item": INT, "rating": INT, "time": INT}
Read = Callable[[str], bytes]
"""Gives the content of a file by its name"""


@dataclass(frozen=True)
class Ratings:
    """R ratings in the order of time, and what is known of users and films."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    """[R] 1 to 5"""
    time: np.ndarray
    """[R] seconds since 1970"""
    users: pa.Table
    """user_id, age, gender, occupation, zip"""
    items: pa.Table
    """item_id, year (null where the title has none), genres (empty where unknown)"""

    @cached_property
    def user_place(self) -> np.ndarray:
        """[R] row of `users`"""
        return _places(self.user, self.users["user_id"], "user")

    @cached_property
    def item_place(self) -> np.ndarray:
        """[R] row of `items`"""
        return _places(self.item, self.items["item_id"], "film")


def read_ratings(variant: Variant, source: Path | None) -> Ratings:
    """Read MovieLens from a folder or zip file, or, where `source` is None, from GroupLens' own archive.

    Raises InputError where there is none of these, a file is lacking or its rows are not those of MovieLens, or the
    download fails or has another checksum than GroupLens publishes.
    """
    read = _opened(variant, source)
    ratings, users, films = _read_100k(read) if variant == "100k" else _read_1m(read)
    year = pc.struct_field(pc.extract_regex(films["title"], r"\((?P<year>[0-9]{4})\)"), "year").cast(pa.float64())
    order = np.argsort(ratings["time"].to_numpy(), kind="stable")
    return Ratings(
        **{name: ratings[name].to_numpy()[order] for name in ("user", "item", "rating", "time")},
        users=users,
        items=pa.table({"item_id": films["item_id"], "year": year, "genres": films["genres"]}),
    )


def _read_100k(read: Read) -> tuple[pa.Table, pa.Table, pa.Table]:
    ratings = _table(read, "u.data", "\t", RATINGS)
    users = _table(read, "u.user", "|", {"user_id": INT, "age": INT, "gender": TEXT, "occupation": TEXT, "zip": TEXT})
    genres = _table(read, "u.genre", "|", {"name": TEXT, "number": INT})["name"].to_pylist()
    text = dict.fromkeys(("title", "released", "released_on_video", "url"), TEXT)
    films = _table(read, "u.item", "|", {"item_id": INT, **text, **dict.fromkeys(genres, INT)})
    flags = np.stack([(films[genre].to_numpy() == 1) & (genre != "unknown") for genre in genres], axis=1)
    names = pa.array(genres).take(pa.array(np.nonzero(flags)[1]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(flags.sum(axis=1))]), pa.int32())
    return ratings, users, films.append_column("genres", pa.ListArray.from_arrays(offsets, names))


def _read_1m(read: Read) -> tuple[pa.Table, pa.Table, pa.Table]:
    ratings = _table(read, "ratings.dat", "::", RATINGS)
    heading = {"user_id": INT, "gender": TEXT, "age": INT, "occupation": TEXT, "zip": TEXT}
    users = _table(read, "users.dat", "::", heading)
    films = _table(read, "movies.dat", "::", {"item_id": INT, "title": TEXT, "genres": TEXT})
    return ratings, users, films.set_column(2, "genres", pc.split_pattern(films["genres"], "|"))


def _table(read: Read, name: str, delimiter: str, columns: dict[str, pa.DataType]) -> pa.Table:
    content = read(name).replace(delimiter.encode(), b"\t")
    try:
        return pacsv.read_csv(
            io.BytesIO(content),
            pacsv.ReadOptions(column_names=list(columns), encoding="latin1"),
            pacsv.ParseOptions(delimiter="\t", quote_char=False),
            pacsv.ConvertOptions(column_types=columns, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{name}: not a file of MovieLens ({str(error).splitlines()[0]})") from error


def _places(ids: np.ndarray, known: pa.ChunkedArray, what: str) -> np.ndarray:
    places = pc.index_in(pa.array(ids), value_set=known.combine_chunks())
    if places.null_count:
        raise InputError(
            f"the ratings name the {what} {ids[places.is_null().to_numpy(False)][0]}, which its own file lacks"
        )
    return places.to_numpy()


def _opened(variant: Variant, source: Path | None) -> Read:
    """How to read a file of the folder or archive. Archives are read in memory: nothing is unpacked."""
    if source is not None and source.is_dir():
        return lambda name: _content(lambda: (source / name).read_bytes(), name, source)
    try:
        archive = zipfile.ZipFile(io.BytesIO(_download(variant)) if source is None else source)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {error}; give the folder or the zip file of MovieLens {variant}") from error
    members = {PurePosixPath(member).name: member for member in archive.namelist()}
    return lambda name: _content(lambda: archive.read(members[name]), name, source)


def _content(read: Callable[[], bytes], name: str, source: Path | None) -> bytes:
    try:
        return read()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: no readable file {name}; give the folder or the zip file of MovieLens") from error


def _download(variant: Variant) -> bytes:
    address, checksum = ARCHIVES[variant]
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            content: bytes = response.read(LARGEST)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{address}: cannot be downloaded ({error}); fetch it elsewhere and give --input FILE"
        ) from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != checksum:
        raise InputError(f"{address}: MD5 checksum {found} of what was downloaded is not {checksum}; try again")
    return content
