"""Files and folders get their final name only when they are complete."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import (
    new_parquet_file,
    rename_folder,
    replace_file,
    require_absent,
    temporary_folder_for,
)

TABLE = pa.table({"a": [1, 2]})


def test_a_parquet_file_appears_when_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.parquet"
    with new_parquet_file(path, TABLE.schema) as writer:
        writer.write_table(TABLE)
        assert not path.exists()
    assert pq.read_table(path) == TABLE
    assert list(path.parent.iterdir()) == [path]


def test_no_parquet_file_remains_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with new_parquet_file(tmp_path / "a.parquet", TABLE.schema) as writer:
            writer.write_table(TABLE)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_parquet_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("old")
    with pytest.raises(InputError, match="exists"), new_parquet_file(path, TABLE.schema):
        pass
    assert path.read_text() == "old"


def test_a_file_is_replaced_and_no_other_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"old", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    with temporary_folder_for(folder) as temporary:
        (temporary / "data").mkdir()
        rename_folder(temporary / "data", folder)
        assert folder.is_dir()
    assert list(folder.parent.iterdir()) == [folder]


def test_an_existing_folder_is_an_error_even_if_it_is_a_broken_link(tmp_path: Path) -> None:
    folder, complete = tmp_path / "data", tmp_path / "complete"
    complete.mkdir()
    folder.symlink_to(tmp_path / "nowhere")
    for check in (lambda: require_absent(folder), lambda: rename_folder(complete, folder)):
        with pytest.raises(InputError, match="exists; choose another folder or remove it"):
            check()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="folder cannot be created"), temporary_folder_for(tmp_path / "file" / "data"):
        pass
