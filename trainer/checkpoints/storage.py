"""Files of checkpoints, on this machine or behind a URI, as torch's distributed checkpoints write and read them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow.fs as pafs
import xxhash
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

from asymdiffrec.datasets.files.locations import filesystem_of, shown

CHUNK = 8 << 20
"""Bytes that are read at a time to sum them up"""


class Folder(FileSystemBase):
    """A folder of files: a local path, or a URI of pyarrow's (s3://, gs://, hdfs://).

    Knows the size and checksum of what was written through it: `sums`, by name.
    """

    def __init__(self, location: str) -> None:
        self.location = shown(location)
        self.filesystem, self.path = filesystem_of(location)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self.sums: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """A file to read, or one to write whose sum is kept."""
        path = str(path)
        if mode == "rb":
            with self.filesystem.open_input_file(path) as file:
                yield file
            return
        with self._output(path) as file:
            summed = _Summed(file)
            yield summed
        self.sums[self._name(path)] = summed.sum

    def _output(self, path: str) -> Any:
        if self.is_local:
            return open(path, "wb")  # a file that can be synchronised to disk, which pyarrow's cannot
        return self.filesystem.open_output_stream(path)

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.path}/")

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{path}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self.filesystem.move(str(path), str(new_path))
        self.sums[self._name(str(new_path))] = self.sums.pop(self._name(str(path)))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self.filesystem.create_dir(str(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return bool(self.filesystem.get_file_info(str(path)).type != pafs.FileType.NotFound)

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self.filesystem.delete_file(str(path))

    def folders(self) -> list[str]:
        """The names of the folders in this one, in no order; none where this one is not there."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return [info.base_name for info in found if info.type == pafs.FileType.Directory]

    def remove(self, name: str) -> None:
        """Delete a folder in this one with all that is in it."""
        self.filesystem.delete_dir(f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """A file that is there in whole or not at all."""
        partial = f"{self.path}/{name}.partial"
        with self.create_stream(partial, "wb") as file:
            file.write(content)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())
        self.rename(partial, f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """OSError where there is no such file."""
        with self.create_stream(f"{self.path}/{name}", "rb") as file:
            content: bytes = file.read()
            return content

    def damaged(self, sums: Mapping[str, tuple[int, str]]) -> dict[str, str]:
        """Of files with known sums those that differ, each with how."""
        return {name: how for name, (size, digest) in sums.items() if (how := self._damage(name, size, digest))}

    def _damage(self, name: str, size: int, digest: str) -> str:
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if info.type != pafs.FileType.File:
            return "is gone"
        if info.size != size:
            return f"has {info.size:,} bytes of {size:,}"
        found = xxhash.xxh3_128()
        with self.create_stream(f"{self.path}/{name}", "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
        return "" if found.hexdigest() == digest else "was altered"

    def writer(self) -> FileSystemWriter:
        writer = FileSystemWriter(self.path, sync_files=self.is_local)
        writer.fs, writer.path = self, self.path  # type: ignore[assignment]
        return writer

    def reader(self) -> FileSystemReader:
        reader = FileSystemReader(self.path)
        reader.fs, reader.path = self, self.path  # type: ignore[assignment]
        return reader


class _Summed(io.RawIOBase):
    """Passes on what is written and sums it up."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, xxhash.xxh3_128(), 0

    @property
    def sum(self) -> tuple[int, str]:
        return self._size, self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        content = memoryview(content).cast("B")
        self._digest.update(content)
        self._file.write(content)
        self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()
