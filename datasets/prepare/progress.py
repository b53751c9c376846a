"""The callback that reports how far a long computation is."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float | None], None]
"""Called with the name of the current phase and its completed share from 0 to 1, or None if the share is unknown"""


def no_progress(phase: str, share: float | None) -> None:
    """Report nothing."""
