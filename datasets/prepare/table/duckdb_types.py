"""Classify DuckDB column types by their SQL names."""

from __future__ import annotations

import re


def is_text(duckdb_type: str) -> bool:
    """Return whether a column holds strings."""
    return duckdb_type == "VARCHAR" or duckdb_type.startswith("ENUM")


def is_integer(duckdb_type: str) -> bool:
    """Return whether a column holds integers of any width."""
    return re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?", duckdb_type) is not None


def is_float(duckdb_type: str) -> bool:
    """Return whether a column holds floating-point numbers."""
    return duckdb_type in ("FLOAT", "DOUBLE")


def is_number(duckdb_type: str) -> bool:
    """Return whether a column holds integers, floats, decimals or booleans."""
    return (
        is_integer(duckdb_type)
        or is_float(duckdb_type)
        or duckdb_type == "BOOLEAN"
        or duckdb_type.startswith("DECIMAL")
    )


def is_list(duckdb_type: str) -> bool:
    """Return whether a column holds lists or arrays of any type."""
    return duckdb_type.endswith("]")


def is_id_list(duckdb_type: str) -> bool:
    """Return whether a column holds lists of integers or of strings."""
    element = re.sub(r"\[\d*\]$", "", duckdb_type)
    return is_list(duckdb_type) and (is_text(element) or is_integer(element))


def is_time(duckdb_type: str) -> bool:
    """Return whether a column holds dates or timestamps."""
    return duckdb_type.startswith(("TIMESTAMP", "DATE"))
