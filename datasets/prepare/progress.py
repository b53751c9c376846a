"""The callback type for the progress of a long computation."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float | None], None]
"""Function of the current phase and its completed share from 0 to 1; the share is None if it is unknown"""


def no_progress(phase: str, share: float | None) -> None:
    """Ignore the progress."""
