"""Read the files of MovieLens 100K and 1M from a folder, a zip file or a download."""

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

Size = Literal["100k", "1m"]
ARCHIVES = {
    "100k": ("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    "1m": ("https://files.grouplens.org/datasets/movielens/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
}
"""URL and MD5 checksum of each archive"""
MAX_DOWNLOAD_BYTES = 1 << 28
INT, TEXT = pa.int64(), pa.string()
RATINGS = {"user": INT, "item": INT, "rating": INT, "time": INT}
ReadFile = Callable[[str], bytes]
"""Function that returns the content of a file, given its name"""


@dataclass(frozen=True)
class Ratings:
    """R ratings, ordered by time, and the tables of users and films."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    """[R] 1 to 5"""
    time: np.ndarray
    """[R] seconds since 1970"""
    users: pa.Table
    """Columns user_id, age, gender, occupation, zip"""
    items: pa.Table
    """Columns item_id, year (null if the title has no year), genres (an empty list if the genres are unknown)"""

    @cached_property
    def user_row(self) -> np.ndarray:
        """Row index in `users` of each rating's user, [R]."""
        return _row_indices(self.user, self.users["user_id"], "user")

    @cached_property
    def item_row(self) -> np.ndarray:
        """Row index in `items` of each rating's film, [R]."""
        return _row_indices(self.item, self.items["item_id"], "film")


def read_ratings(size: Size, source: Path | None) -> Ratings:
    """Read MovieLens from a folder or a zip file, or download the archive from GroupLens if `source` is None.

    Raises InputError if the folder or zip file does not exist, if a file is missing or does not have the format of
    MovieLens, if the download fails, or if the MD5 checksum of the archive is wrong.
    """
    read_file = _file_reader(size, source)
    ratings, users, films = _read_100k(read_file) if size == "100k" else _read_1m(read_file)
    year = pc.struct_field(pc.extract_regex(films["title"], r"\((?P<year>[0-9]{4})\)"), "year").cast(pa.float64())
    order = np.argsort(ratings["time"].to_numpy(), kind="stable")
    return Ratings(
        **{name: ratings[name].to_numpy()[order] for name in ("user", "item", "rating", "time")},
        users=users,
        items=pa.table({"item_id": films["item_id"], "year": year, "genres": films["genres"]}),
    )


def _read_100k(read_file: ReadFile) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return the ratings, users and films of MovieLens 100K."""
    ratings = _read_table(read_file, "u.data", "\t", RATINGS)
    user_columns = {"user_id": INT, "age": INT, "gender": TEXT, "occupation": TEXT, "zip": TEXT}
    users = _read_table(read_file, "u.user", "|", user_columns)
    genres = _read_table(read_file, "u.genre", "|", {"name": TEXT, "number": INT})["name"].to_pylist()
    text = dict.fromkeys(("title", "released", "released_on_video", "url"), TEXT)
    films = _read_table(read_file, "u.item", "|", {"item_id": INT, **text, **dict.fromkeys(genres, INT)})
    flags = np.stack([(films[genre].to_numpy() == 1) & (genre != "unknown") for genre in genres], axis=1)
    names = pa.array(genres).take(pa.array(np.nonzero(flags)[1]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(flags.sum(axis=1))]), pa.int32())
    return ratings, users, films.append_column("genres", pa.ListArray.from_arrays(offsets, names))


def _read_1m(read_file: ReadFile) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return the ratings, users and films of MovieLens 1M."""
    ratings = _read_table(read_file, "ratings.dat", "::", RATINGS)
    user_columns = {"user_id": INT, "gender": TEXT, "age": INT, "occupation": TEXT, "zip": TEXT}
    users = _read_table(read_file, "users.dat", "::", user_columns)
    films = _read_table(read_file, "movies.dat", "::", {"item_id": INT, "title": TEXT, "genres": TEXT})
    return ratings, users, films.set_column(2, "genres", pc.split_pattern(films["genres"], "|"))


def _read_table(read_file: ReadFile, name: str, delimiter: str, columns: dict[str, pa.DataType]) -> pa.Table:
    content = read_file(name).replace(delimiter.encode(), b"\t")
    try:
        return pacsv.read_csv(
            io.BytesIO(content),
            pacsv.ReadOptions(column_names=list(columns), encoding="latin1"),
            pacsv.ParseOptions(delimiter="\t", quote_char=False),
            pacsv.ConvertOptions(column_types=columns, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name}: does not have the format of MovieLens ({str(error).splitlines()[0]}); use the original files of "
            "GroupLens"
        ) from error


def _row_indices(ids: np.ndarray, table_ids: pa.ChunkedArray, kind: str) -> np.ndarray:
    """Return the index of each id in `table_ids`. Raises InputError if `table_ids` does not contain an id."""
    rows = pc.index_in(pa.array(ids), value_set=table_ids.combine_chunks())
    if rows.null_count:
        unknown = ids[rows.is_null().to_numpy(False)][0]
        raise InputError(f"the ratings contain {kind} {unknown}, which is not in the file of {kind}s")
    return rows.to_numpy()


def _file_reader(size: Size, source: Path | None) -> ReadFile:
    """Return a function that reads a file of the folder or archive. Archives are not unpacked to disk."""
    if source is not None and source.is_dir():
        return lambda name: _read_content(lambda: (source / name).read_bytes(), name, source)
    try:
        archive = zipfile.ZipFile(io.BytesIO(_download(size)) if source is None else source)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {error}; specify the folder or the zip file of MovieLens {size}") from error
    members = {PurePosixPath(member).name: member for member in archive.namelist()}
    return lambda name: _read_content(lambda: archive.read(members[name]), name, source)


def _read_content(read: Callable[[], bytes], name: str, source: Path | None) -> bytes:
    try:
        return read()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: no readable file {name}; specify the folder or zip file of MovieLens") from error


def _download(size: Size) -> bytes:
    """Download the archive from GroupLens. Raises InputError if this fails or the checksum is wrong."""
    url, expected = ARCHIVES[size]
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content: bytes = response.read(MAX_DOWNLOAD_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error}); download the file on another host and use --input FILE"
        ) from error
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if checksum != expected:
        raise InputError(f"{url}: the download has the MD5 checksum {checksum}, but {expected} is expected; try again")
    return content
