"""YAML documents: reading, writing, validation and overrides, with one-line errors."""

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


def test_a_field_is_one_line(tmp_path: Path) -> None:
    write_yaml(tmp_path / "clicks.yaml", DOCUMENT, "# Clicks\n")
    text = "# Clicks\ndata: {lanes: 8}\nfields:\n  user: {type: id, num_embeddings: 50}\n"
    assert (tmp_path / "clicks.yaml").read_text() == text


def test_the_error_has_the_path_as_it_is_in_the_file() -> None:
    fields = {"user": {"type": "id", "num_embeddings": 50, "poling": "sum"}}
    with pytest.raises(
        InputError, match=r"^clicks\.yaml: fields\.user\.poling: unknown key; allowed are column, group,"
    ):
        validate(FieldsConfig, {"fields": fields}, "clicks.yaml")


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not YAML"), ("- 1", "found list"), ("", "found NoneType")])
def test_a_file_that_holds_no_mapping_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "clicks.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(str(tmp_path / "clicks.yaml"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(str(tmp_path / "clicks.yaml"))


def test_an_override_adds_missing_sections() -> None:
    document = {"data": {"lanes": 8}}
    apply_override(document, "data.window=64")
    apply_override(document, "train.validation.missing=[0, 0.3]")
    assert document == {"data": {"lanes": 8, "window": 64}, "train": {"validation": {"missing": [0, 0.3]}}}


@pytest.mark.parametrize("text", ["data.lanes", "=3", "data.lanes.first=3", "data.lanes=[1"])
def test_a_malformed_override_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        apply_override({"data": {"lanes": 8}}, text)
