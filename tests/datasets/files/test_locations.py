"""Locations: joining paths and URIs, hiding secrets, and existence."""

from __future__ import annotations

from pathlib import Path

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.locations import filesystem_of, join_location, location_exists, without_secrets


def test_a_name_is_joined_before_the_options_of_a_uri() -> None:
    assert join_location("/data/", "train") == "/data/train"
    assert join_location("/what?", "train") == "/what?/train"
    assert join_location("s3://bucket/data/?region=here", "train") == "s3://bucket/data/train?region=here"


def test_messages_have_no_secrets() -> None:
    assert without_secrets("s3://name:key@bucket/data?endpoint_override=there") == "s3://bucket/data"
    with pytest.raises(InputError) as caught:
        filesystem_of("what://name:key@bucket/data")
    assert "key" not in str(caught.value)


def test_existence_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    assert location_exists(str(tmp_path))
    assert location_exists((tmp_path / "job.yaml").as_uri())
    assert not location_exists(str(tmp_path / "train"))
