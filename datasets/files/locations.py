"""Locations of files and folders: local paths, or URIs that `pyarrow.fs` supports."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.retry import describe_error, with_retries


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a local path or a URI (s3://, gs://, hdfs://, file://), and the path in this filesystem.

    Raises InputError for a URI that pyarrow cannot open.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), location
    try:
        return with_retries(lambda: pafs.FileSystem.from_uri(location))
    except (pa.ArrowException, OSError) as error:
        message = describe_error(error).replace(location, without_secrets(location))
        raise InputError(f"{without_secrets(location)}: {message}") from error


def join_location(folder: str, name: str) -> str:
    """Return the path or URI of a file or folder in a folder.

    >>> join_location("s3://bucket/data?region=eu-west-1", "train")
    's3://bucket/data/train?region=eu-west-1'
    """
    path, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def without_secrets(location: str) -> str:
    """Return a path or URI in a form for messages: without user name, key and options.

    >>> without_secrets("s3://user:key@bucket/data?region=eu-west-1")
    's3://bucket/data'
    """
    return re.sub("://[^/]*@", "://", location).partition("?")[0] if "://" in location else location


def location_exists(location: str) -> bool:
    """Return whether a file or folder exists at a location. Raises InputError if the filesystem does not answer."""
    filesystem, path = filesystem_of(location)
    return file_info(filesystem, path, location).type != pafs.FileType.NotFound


def file_info(filesystem: pafs.FileSystem, path: str | pafs.FileSelector, location: str) -> Any:
    """Return pyarrow's `FileInfo` of a path, or a list of `FileInfo` for a selector.

    Raises InputError with `location` if the filesystem does not answer.
    """
    try:
        return with_retries(lambda: filesystem.get_file_info(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{without_secrets(location)}: cannot be read ({describe_error(error)})") from error
