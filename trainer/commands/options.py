"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="print one JSON document on standard output, everything else on standard error")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="override one value of the job file, for example train.batch_size=8192; repeatable",
    ),
]
JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="job file, written by `asymdiffrec prepare`")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run directory, written by `asymdiffrec train`")]
