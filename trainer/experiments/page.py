"""A comparison as an HTML page: curves over the share of missing fields, and a table of each metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from asymdiffrec.trainer.experiments.text import describe_problems, explain_cells, metric_rows, plural
from asymdiffrec.trainer.html import html_table, page, svg
from asymdiffrec.trainer.metrics import METRICS

MARKER_OFFSET = 0.006
"""Horizontal offset of each further variant, so that intervals do not overlap; unit: share of missing fields"""


def draw_figure(document: Mapping[str, Any]) -> Figure:
    """Draw each metric over the share of missing fields, and below it the differences from the reference."""
    names = [
        name
        for name, metric in METRICS.items()
        if metric.is_drawn and any(result[name] is not None for result in document["results"])
    ]
    figure = Figure(figsize=(4.2 * len(names), 7), layout="constrained")
    upper, lower = figure.subplots(2, len(names), squeeze=False)
    colors = {variant: f"C{index}" for index, variant in enumerate(document["variants"])}
    for values_axes, differences_axes, name in zip(upper, lower, names, strict=True):
        for index, (variant, color) in enumerate(colors.items()):
            points = [
                (result["missing"], result[name])
                for result in document["results"]
                if result["variant"] == variant and result["missing"] is not None
            ]
            values_axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, color=color, label=variant)
            differences = [
                difference
                for difference in document["differences"]
                if difference["variant"] == variant
                and difference["metric"] == name
                and difference["missing"] is not None
            ]
            if differences:
                centers = [row["difference"] for row in differences]
                below = [row["difference"] - row["low"] for row in differences]
                above = [row["high"] - row["difference"] for row in differences]
                shares = [row["missing"] + MARKER_OFFSET * index for row in differences]
                differences_axes.errorbar(
                    shares, centers, yerr=[below, above], fmt="o-", markersize=3, capsize=2, color=color
                )
        heading = METRICS[name].heading
        values_axes.set(title=heading, xlabel="share of fields missing")
        differences_axes.set(
            title=f"{heading}, difference from {document['reference']}", xlabel="share of fields missing"
        )
        differences_axes.axhline(0, color=colors[document["reference"]], linewidth=1)
    figure.legend(*upper[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def write_page(document: Mapping[str, Any], file: Path) -> None:
    """Write the HTML page: the figure, and a table of each metric."""
    headings = ["variant", *(scenario["scenario"] for scenario in document["scenarios"])]
    seeds = plural(document["seeds"], "seed")
    lines = [
        f"{document['rows']:,} rows of the {document['split']} split, mean of {seeds}; {explain_cells(document)}.",
        *describe_problems(document),
    ]
    tables = [html_table(metric.heading, headings, metric_rows(document, name)) for name, metric in METRICS.items()]
    title = f"{', '.join(document['variants'])} on {document['name']}"
    file.write_text(page(title, "", lines, svg(draw_figure(document)), *tables))
