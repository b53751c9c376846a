"""`asymdiffrec samples`: write the samples of one training step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asymdiffrec.trainer.commands.options import AsJson, RunFolder
from asymdiffrec.trainer.console import console, print_json


def samples(
    run: RunFolder,
    step: Annotated[int, typer.Argument(metavar="STEP", help="number of the training step, starting at 1")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Parquet file to write: columns file and row, then the columns that the job reads"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Write the samples of one training step as they are in the data files, for example of a step with a NaN loss."""
    from asymdiffrec.trainer.fit.step_samples import write_samples
    from asymdiffrec.trainer.run import open_run

    rows = write_samples(open_run(run), step, out)
    if as_json:
        print_json({"run": str(run), "step": step, "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} samples of step {step}: {out}", soft_wrap=True)
