"""`asymdiffrec export`: write the folder that serves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from asymdiffrec.trainer.commands.console import console, print_json
from asymdiffrec.trainer.commands.options import AsJson, RunFolder


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    tables: Annotated[
        Literal["fp32", "fp16", "int8", "int4"],
        typer.Option(help="type of the weights of tables; the card says what it costs in AUC"),
    ] = "fp32",
    as_json: AsJson = False,
) -> None:
    """A run's best step as a folder that serves by itself: JSON, safetensors, tables to be mapped into memory."""
    from asymdiffrec.trainer.inference.export import export_run

    manifest, card = export_run(run, out, tables, console)
    if as_json:
        print_json({"run": str(run), "out": str(out), "version": manifest.version, "card": card})
        return
    aucs = [card[which]["test"][0]["auc"] for which in ("trained", "exported")]
    size = manifest.files["tables.bin"].bytes / 1e6
    console.print(
        f"Version {manifest.version}: {out}, tables of {size:,.3g} MB in {tables}; test AUC {aucs[1]:.4f} "
        f"({aucs[0]:.4f} as trained)",
        soft_wrap=True,
        highlight=False,
    )
