"""One result of a benchmark: a value and the value of a peer. This module imports no large library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

HEADINGS = ("name", "value", "peer", "peer's value", "ratio", "goal", "holds")


@dataclass(frozen=True)
class Result:
    """A value and the value of its peer, measured in the same run.

    `holds`: the value meets the goal; None: not judged.
    """

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    goal: str = ""
    holds: bool | None = None

    @property
    def ratio(self) -> float:
        """value / peer_value"""
        return self.value / self.peer_value

    def document(self) -> dict[str, Any]:
        """Return the result as a dict, the form of the entries of `results` in a JSON document."""
        return {**asdict(self), "ratio": self.ratio}


def cells(result: Mapping[str, Any]) -> list[str]:
    """Return a table row, in the order of HEADINGS, for a result of a JSON document."""
    value, peer_value = (f"{result[key]:,.4g} {result['unit']}" for key in ("value", "peer_value"))
    holds = {None: "", True: "yes", False: "no"}[result["holds"]]
    return [result["name"], value, result["peer"], peer_value, f"{result['ratio']:.3f}", result["goal"], holds]
