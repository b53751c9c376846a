"""`asymdiffrec export`: write a folder with all files that are needed to serve a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from asymdiffrec.trainer.commands.options import AsJson, RunFolder
from asymdiffrec.trainer.console import console, print_json


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    tables: Annotated[
        Literal["fp32", "fp16", "int8", "int4"],
        typer.Option(help="precision of the embedding tables; card.json has the metrics before and after quantisation"),
    ] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Export a run's best step to a folder that `serve` and `predict` load without the run."""
    from asymdiffrec.trainer.inference.export import export_run

    manifest, card = export_run(run, out, tables, console)
    if as_json:
        print_json({"run": str(run), "out": str(out), "version": manifest.version, "card": card})
        return
    run_auc, export_auc = (card["metrics"][model]["random_missing"][0]["auc"] for model in ("run", "export"))
    size = manifest.files["tables.bin"].bytes / 1e6
    console.print(
        f"Version {manifest.version}: {out}, tables of {size:,.3g} MB in {tables}; test AUC {export_auc:.4f} "
        f"(as trained: {run_auc:.4f})",
        soft_wrap=True,
        highlight=False,
    )
