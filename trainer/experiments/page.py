"""A comparison on a page: curves over the share of fields that are missing, and all differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from asymdiffrec.trainer.experiments.text import diverged, held, plural, rows
from asymdiffrec.trainer.html import html_table, page, svg
from asymdiffrec.trainer.metrics import METRICS


def picture(document: Mapping[str, Any]) -> Figure:
    """Above, the metrics over the share missing; below, what the others are from the reference, with intervals."""
    drawn = [
        name
        for name, metric in METRICS.items()
        if metric.is_drawn and any(result[name] is not None for result in document["results"])
    ]
    figure = Figure(figsize=(4.2 * len(drawn), 7), layout="constrained")
    upper, lower = figure.subplots(2, len(drawn), squeeze=False)
    colours = {variant: f"C{place}" for place, variant in enumerate(document["variants"])}
    for axes, below, metric in zip(upper, lower, drawn, strict=True):
        for variant, colour in colours.items():
            points = [
                (result["missing"], result[metric])
                for result in document["results"]
                if result["variant"] == variant and result["missing"] is not None
            ]
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, color=colour, label=variant)
            cells = [
                cell
                for cell in document["differences"]
                if cell["variant"] == variant and cell["metric"] == metric and cell["missing"] is not None
            ]
            if cells:
                centre = [cell["difference"] for cell in cells]
                error = [[c["difference"] - c["low"] for c in cells], [c["high"] - c["difference"] for c in cells]]
                places = [cell["missing"] + 0.006 * list(colours).index(variant) for cell in cells]
                below.errorbar(places, centre, yerr=error, fmt="o-", markersize=3, capsize=2, color=colour)
        axes.set(title=METRICS[metric].heading, xlabel="share of fields missing")
        below.set(title=f"{METRICS[metric].heading}, from {document['reference']}", xlabel="share of fields missing")
        below.axhline(0, color=colours[document["reference"]], linewidth=1)
    figure.legend(*upper[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def write_page(document: Mapping[str, Any], file: Path) -> None:
    """The picture, and a table of each metric."""
    headings = ["variant", *(one["scenario"] for one in document["scenarios"])]
    seeds = plural(document["seeds"], "seed")
    told = held(document)
    lines = [
        f"{document['rows']:,} rows of the {document['split']} split, mean of {seeds}; {told}.",
        *diverged(document),
    ]
    tables = [html_table(metric.heading, headings, rows(document, name)) for name, metric in METRICS.items()]
    title = f"{', '.join(document['variants'])} on {document['name']}"
    file.write_text(page(title, "", lines, svg(picture(document)), *tables))
