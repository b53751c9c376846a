"""The callback type for the progress of a long computation."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float | None], None]
"""Function with two arguments: the current phase, and the completed share of the phase from 0 to 1 (None: unknown)"""


def no_progress(phase: str, share: float | None) -> None:
    """Ignore the progress."""
