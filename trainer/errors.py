"""Errors that end a training although its input is valid. The command prints one line and exits with status 1."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot continue, for example because the loss has diverged."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or loaded."""
