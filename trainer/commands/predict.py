"""`asymdiffrec predict`: score the samples of Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.console import console, print_json


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, or export folder")],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Parquet file, folder or URI with the job's fields; labels are not needed"),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Parquet file to write, with the columns of DATA and a column `score`")
    ],
    allow_user_classes: Annotated[
        bool, typer.Option("--allow-user-classes", help="import the user-defined classes that an export names")
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="score N files of DATA at a time under Ray, with one CPU each; OUT is then a folder, and files of "
            "DATA that already have a file in OUT are skipped",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --parallel; default: a cluster started on this host")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score samples with a run's best step, or with an export."""
    from asymdiffrec.trainer.inference.predict import predict_run

    if parallel is None:
        rows = predict_run(run, data, out, console, allow_user_classes=allow_user_classes)
    else:
        rows = _predict_files(run, data, out, allow_user_classes, parallel, address)
    if as_json:
        print_json({"run": str(run), "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} rows scored: {out}", soft_wrap=True)


def _predict_files(
    run: Path, data: str, out: Path, allow_user_classes: bool, parallel: int, address: str | None
) -> int:
    from asymdiffrec.trainer.inference.predict import predict_files, unfinished_tasks

    tasks, total = unfinished_tasks(run, data, out, allow_user_classes), 0
    for number, (file, rows) in enumerate(predict_files(tasks, parallel, address), start=1):
        console.print(f"{number}/{len(tasks)}  {rows:,} rows  {file}", highlight=False, soft_wrap=True)
        total += rows
    return total
