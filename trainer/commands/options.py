"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymdiffrec.base import InputError

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
Outages = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="also evaluate with this field, or all fields of this group, missing; repeatable"
    ),
]
AsInTraining = Annotated[
    bool,
    typer.Option("--as-in-training", help="also evaluate with the patterns of missing fields of the training rows"),
]
Unseen = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD",
        help="also evaluate on the rows whose id of this field does not occur in the training rows; repeatable",
    ),
]


def parse_shares(text: str) -> list[float]:
    """Return the shares of --missing. Raises InputError unless they are numbers in [0, 1], separated by commas."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"--missing {text}: expected numbers in [0, 1], such as 0,0.1,0.3,0.5")
    return shares
