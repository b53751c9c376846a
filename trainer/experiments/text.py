"""A comparison in text: tables of the metrics, and lines on what did not go well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from asymdiffrec.trainer.metrics import METRICS


def table(document: Mapping[str, Any], metric: str) -> Table:
    """Variants by scenarios: the metric of the reference, and how far the others are from it."""
    title = f"{METRICS[metric].heading}, mean of {plural(document['seeds'], 'seed')}; {held(document)}"
    found = Table("variant", title=title)
    for scenario in document["scenarios"]:
        found.add_column(scenario["scenario"], justify="right")
    for row in rows(document, metric):
        found.add_row(*row)
    return found


def periods(document: Mapping[str, Any]) -> Table:
    """The AUC of each variant in each period, under the first scenario."""
    scenario = document["scenarios"][0]["scenario"]
    found = Table("variant", title=f"AUC period by period, {scenario}")
    for period in document["periods"]:
        found.add_column(f"{period['period']}", justify="right")
    for variant in document["variants"]:
        aucs = [
            one["auc"]
            for period in document["periods"]
            for one in period["results"]
            if (one["variant"], one["scenario"]) == (variant, scenario)
        ]
        found.add_row(variant, *("-" if auc is None else f"{auc:.4f}" for auc in aucs))
    return found


def diverged(document: Mapping[str, Any]) -> list[str]:
    """A line on each training that did not end."""
    return [f"{name} diverged, and is judged {why}" for name, why in document["diverged"].items()]


def held(document: Mapping[str, Any]) -> str:
    """What the numbers of `rows` mean."""
    return (
        f"below {document['reference']} the differences from it ± what all of them together stay within with 95 % "
        "probability; * is more than chance"
    )


def rows(document: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Of `table`: a variant, and a cell for each scenario."""
    reference = document["reference"]
    values = [result[metric] for result in document["results"] if result["variant"] == reference]
    found = {reference: ["-" if value is None else f"{value:.4f}" for value in values]}
    for cell in document["differences"]:
        if cell["metric"] == metric:
            found.setdefault(cell["variant"], []).append(_difference(cell))
    return [[name, *cells] for name, cells in found.items()]


def _difference(cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return "-"
    half = cell["high"] - cell["difference"]
    return f"{cell['difference']:+.4f} ±{half:.4f}{'*' if cell['sure'] else ' '}"


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"
