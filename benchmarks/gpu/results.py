"""Convert the results of a GPU day to the format of all benchmarks. This module imports no large library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks._result import Result

COMPARED_RUNS = ("plain", "bf16", "resume", "uvm", "uvm-caching")
"""Trainings whose losses are compared with the losses on the CPU"""
SECTIONS = ("turns", "capacity", "parquet", "optimizers")


def document(summary: dict[str, Any]) -> dict[str, Any]:
    """Return machine, versions and results from the summary of a GPU day."""
    documents = summary["documents"]
    where = documents.get("machine", {"machine": "unknown: the libraries did not load", "versions": {}})
    measured = [result for name in SECTIONS for result in documents.get(name, {}).get("results", [])]
    return {**where, "results": [result.document() for result in checks(documents)] + measured}


def checks(documents: dict[str, Any]) -> Iterator[Result]:
    """Yield the checked values of the parts, with their limits."""
    for name, memory in (("tables", "GPU memory"), ("tables-uvm", "managed memory")):
        if name in documents:
            equal, count = documents[name]["equal"], len(documents[name]["cases"])
            yield Result(
                f"FBGEMM equal to the reference, {memory}", equal, "cases", "all cases", count, "all", equal == count
            )
    for name in COMPARED_RUNS:
        if documents.get(name, {}).get("steps"):
            run = documents[name]
            title = f"training {name}: relative difference to the CPU's loss, first {run['first']} steps"
            yield Result(
                title, run["max_difference_first"], "", "limit", run["limit"], "at most the limit", run["holds"]
            )
