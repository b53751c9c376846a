"""Where data are: a local path, or a URI that `pyarrow.fs` knows."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.retry import patiently, reason


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path within it of a local path or a URI (s3://, gs://, hdfs://, file://)."""
    if "://" not in location:
        return pafs.LocalFileSystem(), location
    try:
        return patiently(lambda: pafs.FileSystem.from_uri(location))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shown(location)}: {reason(error).replace(location, shown(location))}") from error


def part_of(location: str, part: str) -> str:
    """The path or URI of a file or folder within a folder; what follows a `?` in a URI stays at its end."""
    folder, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{folder.rstrip('/')}/{part}{mark}{options}"


def shown(location: str) -> str:
    """A path or URI as messages name it: without a user's name and key, and without options."""
    return re.sub("://[^/]*@", "://", location).partition("?")[0] if "://" in location else location


def exists(location: str) -> bool:
    """Whether there is a file or a folder."""
    filesystem, path = filesystem_of(location)
    return file_info(filesystem, path, location).type != pafs.FileType.NotFound


def file_info(filesystem: pafs.FileSystem, path: str | pafs.FileSelector, location: str) -> Any:
    """What the filesystem says of a path or of the files in a folder. Raises InputError where it says nothing."""
    try:
        return patiently(lambda: filesystem.get_file_info(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shown(location)}: cannot be read ({reason(error)})") from error
