"""Batch prediction of many files, each by itself, on as many machines as a Ray cluster has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.cluster.parallel_tasks import side_by_side
from asymdiffrec.datasets.files.locations import part_of
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.inference.restore import predict_run


@dataclass(frozen=True)
class File:
    """One file, and where its scores go."""

    model: str
    data: str
    out: str
    allow_user_classes: bool


def files(model: Path, data: str, out: Path, allow_user_classes: bool) -> list[File]:
    """Those of a folder whose scores are not in the folder `out` yet."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; with --parallel it is a folder, with a file for each of DATA")
    names = [Path(path).name for path in open_shards(data).files]
    alone = [Path(data).name] == names
    found = [
        File(str(model), data if alone else part_of(data, name), str(out / name), allow_user_classes) for name in names
    ]
    return [file for file in found if not Path(file.out).exists()]


def predict_files(todo: list[File], parallel: int, address: str | None) -> Iterator[tuple[str, int]]:
    """Score them, so many at a time; the file that was written and its rows, as they end."""
    for file, rows in side_by_side(_predict, todo, parallel, address):
        yield file.out, rows


def _predict(file: File) -> int:
    return predict_run(
        Path(file.model), file.data, Path(file.out), Console(quiet=True), allow_user_classes=file.allow_user_classes
    )
