"""Tests of JSON-lines files: only complete lines are read, and every appended line is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asymdiffrec.json_lines import JsonLinesReader, follow_json_lines, read_json_lines


def append(path: Path, *values: object, half: str = "") -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(value) + "\n" for value in values) + half)


def test_only_complete_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    assert read_json_lines(path) == []
    append(path, 1, {"two": 2}, half='{"thr')
    assert read_json_lines(path) == [1, {"two": 2}]


def test_a_reader_returns_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    reader = JsonLinesReader(path)
    assert reader.read_new() == ([], False)
    append(path, 1, 2, half='"thr')
    assert reader.read_new() == ([1, 2], True)
    append(path, half='ee"\n')
    append(path, 4)
    assert reader.read_new() == (["three", 4], False)
    assert reader.read_new() == ([], False)


def test_a_reader_from_the_end_skips_existing_lines(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    append(path, 1)
    reader = JsonLinesReader(path, from_end=True)
    append(path, 2)
    assert reader.read_new() == ([2], False)


def test_a_file_that_replaces_another_is_read_from_its_start(tmp_path: Path) -> None:
    path, other = tmp_path / "values.jsonl", tmp_path / "other.jsonl"
    append(path, 1, 2)
    reader = JsonLinesReader(path, from_end=True)
    append(other, 5)
    other.rename(path)
    assert reader.read_new() == ([5], True)


def test_lines_written_before_a_failure_are_handled(tmp_path: Path) -> None:
    path, values = tmp_path / "values.jsonl", list[int]()

    def fail() -> None:
        append(path, 1, 2)
        raise RuntimeError("boom")

    with (
        pytest.raises(RuntimeError, match="boom"),
        follow_json_lines(path, lambda lines, is_new_file: values.extend(lines), seconds=60),
    ):
        fail()
    assert values == [1, 2]
