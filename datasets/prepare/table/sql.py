"""Names and values within SQL."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    """The name of a column or table."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | bool) -> str:
    """A value as it stands in SQL."""
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'"


def literals(values: Iterable[str]) -> str:
    """A list of strings."""
    return "[" + ", ".join(map(literal, values)) + "]"
