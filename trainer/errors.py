"""What ends a training, beside wrong input."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or loaded."""
