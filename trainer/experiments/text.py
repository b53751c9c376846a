"""A comparison as text: tables of the metrics, and lines about trainings that failed or diverged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from asymdiffrec.trainer.metrics import METRICS


def metric_table(document: Mapping[str, Any], metric: str) -> Table:
    """Return the table of one metric: the value of the reference, and the differences of the other variants from it."""
    title = f"{METRICS[metric].heading}, mean of {plural(document['seeds'], 'seed')}; {explain_cells(document)}"
    table = Table("variant", title=title)
    for scenario in document["scenarios"]:
        table.add_column(scenario["scenario"], justify="right")
    for row in metric_rows(document, metric):
        table.add_row(*row)
    return table


def period_table(document: Mapping[str, Any]) -> Table:
    """Return the AUC of each variant in each period, under the first scenario."""
    scenario = document["scenarios"][0]["scenario"]
    table = Table("variant", title=f"AUC by period, {scenario}")
    for period in document["periods"]:
        table.add_column(f"{period['period']}", justify="right")
    for variant in document["variants"]:
        aucs = [
            result["auc"]
            for period in document["periods"]
            for result in period["results"]
            if (result["variant"], result["scenario"]) == (variant, scenario)
        ]
        table.add_row(variant, *("-" if auc is None else f"{auc:.4f}" for auc in aucs))
    return table


def describe_problems(document: Mapping[str, Any]) -> list[str]:
    """Return a line about each training that failed, and a line about each training that diverged."""
    failed = [f"{name} failed, and its variant is left out: {message}" for name, message in document["failed"].items()]
    diverged = [f"{name} diverged, and is evaluated {how}" for name, how in document["diverged"].items()]
    return failed + diverged


def explain_cells(document: Mapping[str, Any]) -> str:
    """Return a phrase that says what the cells of `metric_rows` mean."""
    return (
        f"below {document['reference']}: difference from {document['reference']} ± half width of its simultaneous 95 % "
        "confidence interval; *: the interval does not contain 0"
    )


def metric_rows(document: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return the rows of `metric_table`: the name of a variant, and a cell for each scenario."""
    reference = document["reference"]
    values = [result[metric] for result in document["results"] if result["variant"] == reference]
    cells = {reference: ["-" if value is None else f"{value:.4f}" for value in values]}
    for difference in document["differences"]:
        if difference["metric"] == metric:
            cells.setdefault(difference["variant"], []).append(_describe_difference(difference))
    return [[name, *cells_of_variant] for name, cells_of_variant in cells.items()]


def _describe_difference(difference: Mapping[str, Any]) -> str:
    if difference["difference"] is None:
        return "-"
    half = difference["high"] - difference["difference"]
    return f"{difference['difference']:+.4f} ±{half:.4f}{'*' if difference['sure'] else ' '}"


def plural(count: int, noun: str) -> str:
    """Return the count with its noun, for example "3 seeds"."""
    return f"{count} {noun}{'s' if count > 1 else ''}"
