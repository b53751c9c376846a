"""Reading the job file, and the one-line error for a wrong value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import validate, write_yaml
from asymdiffrec.trainer.job import Job, read_job

JOB: dict[str, Any] = {
    "name": "clicks",
    "fields": {
        "item": {"type": "id", "num_embeddings": 100, "group": "item"},
        "tags": {"type": "id_list", "num_embeddings": 50},
        "age": {"type": "number"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = yaml.safe_load(yaml.safe_dump(JOB))
    *parents, last = path.split(".")
    section = document
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return document


def test_a_resolved_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    job = read_job(
        tmp_path / "job.yaml", ["train.batch_size=2048", "diffusion.method=base", "model.extractor={name: dcn}"]
    )
    assert (job.train.batch_size, job.diffusion.method, job.model.extractor.name) == (2048, "base", "dcn")
    assert job.data.path == str(tmp_path)
    write_yaml(tmp_path / "resolved.yaml", job)
    assert read_job(tmp_path / "resolved.yaml") == job


def test_a_uri_of_the_data_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(changed("data.path", "s3://bucket/clicks")))
    assert read_job(tmp_path / "job.yaml").location("train") == "s3://bucket/clicks/train"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tables.optimizer", {"name": "lamb"}, "tables.optimizer: found {'name': 'lamb'};"),
        ("train.batchsize", 8, "train.batchsize: unknown key; did you mean batch_size?"),
        ("train.zzz", 8, "train.zzz: unknown key; allowed are seed, init_from,"),
        ("trian", {}, "trian: unknown key; did you mean train?"),
        ("fields.item.num_embeddings", 0, "fields.item.num_embeddings: found 0; input should be greater than 0"),
        ("fields.item.num_embeddings", None, "fields.item.num_embeddings: found None; input should be a valid integer"),
        ("fields.item.pooling", "sum", "fields.item.pooling: unknown key; allowed are column, group,"),
        ("fields.item.type", "ids", "fields.item: found "),
        ("fields.tags.pooling", "max", "fields.tags.pooling: found 'max'; input should be 'mean' or 'sum'"),
        ("train.validation.missing", [0, 1.5], "train.validation.missing.1: found 1.5; input should be less than 1"),
        ("diffusion.forward.time", {"law": "uniform", "low": 2}, "diffusion.forward.time.low: found 2;"),
        ("model.extractor", {"name": "mlp", "hiden": [3]}, "model.extractor.hiden: unknown key; did you mean hidden?"),
        ("tables.optimizer", {"name": "adagrad", "lr": 1}, "tables.optimizer.lr: unknown key;"),
        ("fields", {"age": {"type": "number"}}, "no field of type id or id_list; a model needs at least one"),
        ("name", "a/b", "name: found 'a/b';"),
    ],
)
def test_a_wrong_value_is_an_error_of_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        validate(Job, changed(path, value), "job.yaml")
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"job.yaml: {message}")
