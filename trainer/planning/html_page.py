"""A plan as an HTML page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asymdiffrec.trainer.html import html_table, page, svg
from asymdiffrec.trainer.planning.terminal import (
    ADVICE_HEADINGS,
    GB,
    TABLE_HEADINGS,
    advice_rows,
    summary,
    table_rows,
    total_bytes,
)

MAX_BAR_RANKS = 64
"""Maximum number of ranks drawn as bars; more ranks are drawn as areas."""
MAX_CHART_TABLES = 20


def write_page(document: Mapping[str, Any], name: str, file: Path) -> None:
    """Write a self-contained page: the step, memory and time of every rank, and the tables by size."""
    headline, *lines = summary(document)
    advice = advice_rows(document)
    charts = map(svg, (*_rank_charts(document), _table_chart(document)))
    advice_table = [html_table("Changes that help", ADVICE_HEADINGS, advice)] if advice else []
    tables = html_table("Tables", TABLE_HEADINGS, table_rows(document))
    lines = [*lines, *document["notes"]]
    file.write_text(page(f"Sharding plan of {name}", headline, lines, *charts, *advice_table, tables))


def _rank_charts(document: Mapping[str, Any]) -> list[Figure]:
    """Return charts of the memory of each rank and of the time of its tables."""
    ranks = document["ranks"]
    shared = {"dense": document["dense_bytes"], "reserve": document["reserved_bytes"]}
    memory = {
        "weights": [rank["weights_bytes"] / GB for rank in ranks],
        "optimizer state": [rank["state_bytes"] / GB for rank in ranks],
        "activations": [rank["activations_bytes"] / GB for rank in ranks],
        **{name: [size / GB] * len(ranks) for name, size in shared.items()},
    }
    time = {
        "forward": [rank["forward_milliseconds"] for rank in ranks],
        "backward": [rank["backward_milliseconds"] for rank in ranks],
        "communication": [
            rank["forward_communication_milliseconds"] + rank["backward_communication_milliseconds"] for rank in ranks
        ],
    }
    return [
        _stacked_chart("Memory of each rank", "GB", memory, document["device_bytes"] / GB),
        _stacked_chart("Time of the tables on each rank, at the device's nominal figures", "ms", time),
    ]


def _stacked_chart(title: str, unit: str, parts: Mapping[str, Sequence[float]], limit: float | None = None) -> Figure:
    """Return a chart with the parts [ranks] stacked; `limit` adds a line at the device's memory."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots()
    count = len(next(iter(parts.values())))
    bottom = [0.0] * count
    for label, values in parts.items():
        top = [low + value for low, value in zip(bottom, values, strict=True)]
        if count <= MAX_BAR_RANKS:
            axes.bar(range(count), values, bottom=bottom, label=label, width=0.8)
        else:
            axes.fill_between(range(count), bottom, top, label=label, step="mid", linewidth=0)
        bottom = top
    if limit:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1, label="the device's memory")
    axes.set(title=title, xlabel="rank", ylabel=unit, xlim=(-0.6, count - 0.4))
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _table_chart(document: Mapping[str, Any]) -> Figure:
    largest = sorted(document["tables"], key=total_bytes)[-MAX_CHART_TABLES:]
    figure = Figure(figsize=(11, 1 + 0.26 * len(largest)), layout="constrained")
    axes = figure.subplots()
    sizes = [total_bytes(table) / GB for table in largest]
    bars = axes.barh([table["name"] for table in largest], sizes)
    labels = [f"{size:.3g} GB, {table['sharding']}" for size, table in zip(sizes, largest, strict=True)]
    axes.bar_label(bars, labels, padding=4)
    axes.set(title=f"The {len(largest)} largest tables, with optimizer state", xlabel="GB")
    axes.margins(x=0.3)
    return figure
