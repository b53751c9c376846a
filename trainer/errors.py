"""Errors that end a training for another reason than wrong input; the command prints one line and exits with 1."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on, for example because the loss has diverged."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or loaded."""
