"""The folder of a checkpoint, at a local path or a URI, with the interface that torch's distributed checkpoints use."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow.fs as pafs
import xxhash
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

from asymdiffrec.datasets.files.locations import filesystem_of, without_secrets

CHECKSUM_CHUNK_BYTES = 8 << 20
"""Bytes that are read at a time to compute a checksum"""


class Folder(FileSystemBase):
    """A folder of files: a local path, or a URI that pyarrow.fs opens (s3://, gs://, hdfs://).

    `checksums` has the size in bytes and the checksum of each file that was written through this object, by file name.
    Written by hand for two reasons. Torch's `FsspecWriter` needs fsspec, a second implementation of every file system
    with separate credentials. No torch writer computes checksums while it writes.
    """

    def __init__(self, location: str) -> None:
        self.location = without_secrets(location)
        self.filesystem, self.path = filesystem_of(location)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self.checksums: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open a file to read ("rb") or to write; the checksum of a written file is recorded."""
        path = str(path)
        if mode == "rb":
            with self.filesystem.open_input_file(path) as file:
                yield file
            return
        with self._output(path) as file:
            output = _ChecksumWriter(file)
            yield output
        self.checksums[self._name(path)] = output.checksum

    def _output(self, path: str) -> Any:
        if self.is_local:
            return open(path, "wb")  # can be synchronised to disk with fsync, unlike a pyarrow file
        return self.filesystem.open_output_stream(path)

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.path}/")

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """Return the path of a file in a folder."""
        return f"{path}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Rename a file that was written through this folder."""
        self.filesystem.move(str(path), str(new_path))
        self.checksums[self._name(str(new_path))] = self.checksums.pop(self._name(str(path)))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        """Return the path as a string; torch passes it to the other methods."""
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Create a folder and its parents."""
        self.filesystem.create_dir(str(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True: `filesystem_of` has checked the location."""
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a file or folder exists at the path."""
        return bool(self.filesystem.get_file_info(str(path)).type != pafs.FileType.NotFound)

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete a file."""
        self.filesystem.delete_file(str(path))

    def folders(self) -> list[str]:
        """Return the names of the folders in this folder, unsorted; an empty list if this folder does not exist."""
        entries = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return [entry.base_name for entry in entries if entry.type == pafs.FileType.Directory]

    def remove(self, name: str) -> None:
        """Delete a folder in this folder with its content."""
        self.filesystem.delete_dir(f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that either the whole file or nothing is visible under its name."""
        partial = f"{self.path}/{name}.partial"
        with self.create_stream(partial, "wb") as file:
            file.write(content)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())
        self.rename(partial, f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError if the file does not exist."""
        with self.create_stream(f"{self.path}/{name}", "rb") as file:
            content: bytes = file.read()
            return content

    def damages(self, checksums: Mapping[str, tuple[int, str]]) -> dict[str, str]:
        """Return {name: damage} of the damaged files. `checksums` has size and checksum of each file as written."""
        damages = {name: self._damage(name, size, digest) for name, (size, digest) in checksums.items()}
        return {name: damage for name, damage in damages.items() if damage}

    def _damage(self, name: str, size: int, digest: str) -> str:
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if info.type != pafs.FileType.File:
            return "is missing"
        if info.size != size:
            return f"has {info.size:,} of {size:,} bytes"
        checksum = xxhash.xxh3_128()
        with self.create_stream(f"{self.path}/{name}", "rb") as file:
            while chunk := file.read(CHECKSUM_CHUNK_BYTES):
                checksum.update(chunk)
        return "" if checksum.hexdigest() == digest else "was altered"

    def writer(self) -> FileSystemWriter:
        """Return torch's writer of distributed checkpoints for this folder."""
        writer = FileSystemWriter(self.path, sync_files=self.is_local)
        writer.fs, writer.path = self, self.path  # type: ignore[assignment]
        return writer

    def reader(self) -> FileSystemReader:
        """Return torch's reader of distributed checkpoints for this folder."""
        reader = FileSystemReader(self.path)
        reader.fs, reader.path = self, self.path  # type: ignore[assignment]
        return reader


class _ChecksumWriter(io.RawIOBase):
    """A file that forwards all bytes to `file` and computes their size and checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, xxhash.xxh3_128(), 0

    @property
    def checksum(self) -> tuple[int, str]:
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
