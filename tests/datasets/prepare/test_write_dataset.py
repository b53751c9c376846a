"""Writing a data set: files, row groups, the job file, and nothing if it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.write_dataset import write_dataset, write_files
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import Statistics

JOB: dict[str, Any] = {
    "name": "example",
    "data": {"path": ".", "label": "label"},
    "fields": {
        "user": {"type": "id", "num_embeddings": 50, "group": "user"},
        "price": {"type": "number", "group": "item"},
    },
    "train": {"batch_size": 64, "betas": [0.9, 0.99], "optimizer": {"name": "adam"}},
}


def table(rows: int, start: int = 0) -> pa.Table:
    """Return rows that are numbered from `start`."""
    users = np.arange(start, start + rows)
    return pa.table({"user": users % 7, "price": users / 2, "label": (users % 2).astype(np.int8), "row": users})


def three_splits(rows: int = 20) -> dict[str, list[pa.Table]]:
    """Return train, valid and test with `rows` rows each."""
    return {split: [table(rows)] for split in ("train", "valid", "test")}


@given(st.lists(st.integers(0, 40), min_size=1).filter(sum), st.integers(1, 30), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_rows_keep_their_order_and_files_and_row_groups_have_the_given_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], per_file: int, per_group: int
) -> None:
    out = tmp_path_factory.mktemp("out") / "data"
    starts = np.cumsum([0, *sizes])
    tables = (table(size, start) for size, start in zip(sizes, starts, strict=False))
    splits = three_splits() | {"train": tables}
    profile = write_dataset(out, splits, JOB, rows_per_file=per_file, rows_per_group=per_group)

    files = sorted((out / "train").iterdir())
    assert [file.name for file in files] == [f"part-{number:05d}.parquet" for number in range(len(files))]
    rows = np.concatenate([pq.read_table(file)["row"].to_numpy() for file in files])
    np.testing.assert_array_equal(rows, np.arange(sum(sizes)))
    footers = [pq.ParquetFile(file).metadata for file in files]
    assert max(footer.num_rows for footer in footers) <= per_file
    groups = [footer.row_group(g).num_rows for footer in footers for g in range(footer.num_row_groups)]
    assert set(groups[:-1]) <= {min(per_file, per_group)}
    assert profile["rows"] == {"train": sum(sizes), "valid": 20, "test": 20}


def test_a_data_set_has_a_valid_job_file_and_statistics(tmp_path: Path) -> None:
    out = tmp_path / "new" / "data"
    profile = write_dataset(out, three_splits(), JOB, profile={"extra": {"value": 0.75}})
    text = (out / "job.yaml").read_text()
    assert yaml.safe_load(text) == JOB
    assert text.startswith("#")
    assert f"asymdiffrec train {out}/job.yaml" in text
    assert "\n  user: {type: id, num_embeddings: 50, group: user}\n" in text
    FieldsConfig.model_validate({key: yaml.safe_load(text)[key] for key in ("data", "fields")})
    statistics = Statistics.model_validate(yaml.safe_load((out / "statistics.yaml").read_text()))
    assert statistics.numeric["price"].mean == pytest.approx(4.75)
    assert statistics.cardinalities == {"user": 7}
    assert json.loads((out / "profile.json").read_text()) == profile
    assert profile["extra"] == {"value": 0.75}
    assert [path.name for path in out.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_path_is_never_changed(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "data"
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}[kind]()
    with pytest.raises(InputError, match="data: the folder exists; choose another folder or remove it"):
        write_dataset(out, three_splits(), JOB)
    assert list(tmp_path.iterdir()) == [out]
    assert not out.is_dir() or not list(out.iterdir())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(tmp_path: Path, fault: type[BaseException]) -> None:
    def tables() -> Iterator[pa.Table]:
        yield table(100)
        raise fault

    with pytest.raises(fault):
        write_dataset(tmp_path / "data", three_splits() | {"test": tables()}, JOB, rows_per_group=10)  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the valid split has no rows"):
        write_dataset(tmp_path / "data", three_splits() | {"valid": [table(0)]}, JOB)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/data: the folder cannot be created"):
        write_dataset(tmp_path / "file" / "data", three_splits(), JOB)


def test_only_columns_with_repeated_values_have_a_dictionary(tmp_path: Path) -> None:
    rows = np.arange(1000)
    lists = [[int(row), 5] for row in rows]
    columns = {"twice": rows // 2, "once": rows, "text": [f"t{row % 9}" for row in rows], "lists": lists}
    columns["none"] = pa.nulls(1000, pa.string())
    columns["tags"] = [[f"t{row % 5}"] for row in rows]
    assert write_files(tmp_path, [pa.table(columns)], rows_per_file=1000) == 1000
    footer = pq.read_metadata(tmp_path / "part-00000.parquet")
    leaves = [footer.row_group(0).column(index) for index in range(footer.num_columns)]
    with_dictionary = {leaf.path_in_schema for leaf in leaves if leaf.has_dictionary_page}
    assert with_dictionary - {"none"} == {"twice", "text", "lists.list.element", "tags.list.element"}
    assert pq.read_table(tmp_path).to_pylist() == pa.table(columns).to_pylist()
