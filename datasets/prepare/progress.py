"""How long work tells how far it is, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the share of it that is done, which is None where that is not known"""


def silent(doing: str, share: float | None) -> None:
    """Tells nobody."""
