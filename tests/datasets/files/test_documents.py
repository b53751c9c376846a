"""YAML documents: what they are read into, and the one line about what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import apply_override, read_yaml, validate, write_yaml
from asymdiffrec.datasets.schema import FieldsConfig

DOCUMENT: dict[str, Any] = {"data": {"lanes": 8}, "fields": {"user": {"type": "id", "num_embeddings": 50}}}


def test_a_model_reads_back_the_same(tmp_path: Path) -> None:
    model = validate(FieldsConfig, DOCUMENT, "clicks.yaml")
    write_yaml(tmp_path / "clicks.yaml", model)
    assert validate(FieldsConfig, read_yaml(str(tmp_path / "clicks.yaml")), "clicks.yaml") == model


def test_a_page_shows_the_fields(tmp_path: Path) -> None:
    write_yaml(tmp_path / "clicks.yaml", DOCUMENT, "# Clicks\n")
    text = "# Clicks\ndata: {lanes: 8}\nfields:\n  user: {type: id, num_embeddings: 50}\n"
    assert (tmp_path / "clicks.yaml").read_text() == text


def test_the_line_names_the_path_as_it_stands_in_the_file() -> None:
    fields = {"user": {"type": "id", "num_embeddings": 50, "poling": "sum"}}
    with pytest.raises(
        InputError, match=r"^clicks\.yaml: fields\.user\.poling: unknown key; allowed are column, group,"
    ):
        validate(FieldsConfig, {"fields": fields}, "clicks.yaml")


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not YAML"), ("- 1", "found list"), ("", "found NoneType")])
def test_file_that_is_no_mapping(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "clicks.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(str(tmp_path / "clicks.yaml"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(str(tmp_path / "clicks.yaml"))


def test_a_setting_makes_the_sections_that_it_needs() -> None:
    document = {"data": {"lanes": 8}}
    apply_override(document, "data.window=64")
    apply_override(document, "train.validation.missing=[0, 0.3]")
    assert document == {"data": {"lanes": 8, "window": 64}, "train": {"validation": {"missing": [0, 0.3]}}}


@pytest.mark.parametrize("setting", ["data.lanes", "=3", "data.lanes.first=3", "data.lanes=[1"])
def test_malformed_setting(setting: str) -> None:
    with pytest.raises(InputError, match="--set"):
        apply_override({"data": {"lanes": 8}}, setting)
