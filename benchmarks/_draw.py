"""Draw benchmark documents as one picture: ratios to peers, and times by size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

CURVES = "scaling"
SIZED = re.compile(r", (\w+) = (\d+)$")
RATIOS = ("steps", "kernels-h200", "checkpoints", "data")
"""Documents whose ratios are drawn. The ratios of plans and of quality are left out, since they are no speeds"""


def draw(documents: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the documents that RATIOS and CURVES name, and write the picture.

    Write nothing if `documents` has neither ratios nor curves.
    """
    ratios = [name for name in RATIOS if name in documents]
    points = [
        (match[1], int(match[2]), result)
        for result in documents.get(CURVES, {"results": []})["results"]
        if (match := SIZED.search(result["name"]))
    ]
    axes_names = list(dict.fromkeys(axis for axis, _, _ in points))
    counts = [len(documents[name]["results"]) for name in ratios]
    rows = len(ratios) + bool(axes_names)
    if not rows:
        return
    heights = [1 + 0.22 * count for count in counts] + [3.5] * bool(axes_names)
    figure = plt.figure(figsize=(12, sum(heights)), layout="constrained")
    parts = figure.subfigures(rows, 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, name in zip(parts, ratios, strict=False):
        _ratios(part.subplots(), name, documents[name])
    if axes_names:
        for axes, axis in zip(parts[-1].subplots(1, len(axes_names), squeeze=False)[0], axes_names, strict=True):
            _curves(axes, axis, [(size, result) for name, size, result in points if name == axis])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratios(axes: Axes, name: str, document: dict[str, Any]) -> None:
    results = document["results"][::-1]
    labels = [f"{result['name']} / {result['peer']}" for result in results]
    values = [result["ratio"] for result in results]
    positions = range(len(results))
    axes.barh(positions, values, color="tab:blue", height=0.7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(positions, labels, fontsize=7)
    axes.set_title(f"{name}: ratio to the peer, {document['machine']}", fontsize=9)
    for position, value in zip(positions, values, strict=True):
        axes.annotate(f" {value:.2f}", (value, position), va="center", fontsize=7)
    axes.margins(x=0.15)


def _curves(axes: Axes, name: str, points: list[tuple[int, dict[str, Any]]]) -> None:
    sizes = [size for size, _ in points]
    axes.plot(sizes, [result["value"] for _, result in points], marker="o", label="asymdiff")
    axes.plot(sizes, [result["peer_value"] for _, result in points], marker="s", label=points[0][1]["peer"])
    axes.set(xscale="log", yscale="log", xlabel=name, ylabel="ms of a step")
    axes.legend(fontsize=7)
