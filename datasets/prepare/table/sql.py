"""Write names, strings and lists as SQL text."""

from __future__ import annotations

from collections.abc import Iterable


def quote_name(name: str) -> str:
    """Return the name of a column or table as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | bool) -> str:
    """Return a string or boolean as an SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'"


def list_literal(values: Iterable[str]) -> str:
    """Return strings as an SQL list."""
    return "[" + ", ".join(map(literal, values)) + "]"
