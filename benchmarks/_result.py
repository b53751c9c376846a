"""The result of a measurement: a value and the value of a peer. This module imports no large library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

HEADINGS = ("name", "value", "peer", "peer's value", "ratio", "goal", "holds")


@dataclass(frozen=True)
class Result:
    """A value and the value of its peer, measured in the same run.

    holds: whether the value meets the goal, or None if the value is not judged.
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
        """Return the result as a dict. The list `results` of a JSON document has such dicts."""
        return {**asdict(self), "ratio": self.ratio}


def cells(result: Mapping[str, Any]) -> list[str]:
    """Return the cells of a table row for a result in a JSON document. HEADINGS are the headings of the cells."""
    value, peer_value = (f"{result[key]:,.4g} {result['unit']}" for key in ("value", "peer_value"))
    holds = {None: "", True: "yes", False: "no"}[result["holds"]]
    return [result["name"], value, result["peer"], peer_value, f"{result['ratio']:.3f}", result["goal"], holds]
