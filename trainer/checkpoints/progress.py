"""Progress stored in a checkpoint besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

LOG_INTERVAL = ("mean_losses", "counted_steps", "row_checksum")
"""Fields about the steps since the last line of the log; result.json does not contain them"""


@dataclass(frozen=True)
class Progress:
    """Progress of a training: how many steps it has done, and its best validation so far.

    >>> progress = Progress(step=100).validated(0.75, higher_is_better=True)
    >>> progress.best_step, progress.best_value
    (100, 0.75)
    """

    step: int = 0
    """Steps done since the start of the run"""
    best_step: int = 0
    """Step with the best validation; 0 before the first validation"""
    best_value: float | None = None
    """Validation metric at `best_step`; None before the first validation"""
    validations_since_best: int = 0
    mean_losses: Mapping[str, float] = field(default_factory=dict)
    """Mean of each loss over all workers and the `counted_steps`"""
    counted_steps: int = 0
    """Steps since the last line of the log, without skipped steps"""
    row_checksum: int = 0
    """Checksum of the rows that the counted steps learned from, see `sample_order.row_checksums`"""

    def summary(self) -> dict[str, Any]:
        """Return the values for result.json."""
        return {name: value for name, value in asdict(self).items() if name not in LOG_INTERVAL}

    def validated(self, value: float, higher_is_better: bool) -> Progress:
        """Return the progress after a validation at the current step that gave `value`."""
        if self.best_value is None or (value > self.best_value if higher_is_better else value < self.best_value):
            return replace(self, best_step=self.step, best_value=value, validations_since_best=0)
        return replace(self, validations_since_best=self.validations_since_best + 1)
