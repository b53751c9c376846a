"""Memory for batches, used again: to touch fresh memory costs as much time as to fill it."""

from __future__ import annotations

import weakref
from math import prod
from threading import Lock
from typing import Protocol

import numpy as np
import torch


class Buffers(Protocol):
    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """A tensor without content."""


class Fresh:
    """Memory that is used once."""

    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)


class BufferPool:
    """Gives tensors, and gives their memory again once nobody holds them.

    Page-locked where `pinned`, which torch itself uses again. What is free stays with the BufferPool.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[np.ndarray] = []
        self._choosing = Lock()

    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """A tensor without content; threads may ask at the same time."""
        if self._pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = prod(shape) * dtype.itemsize
        block = self._block(size)
        array = block[:size].view(str(dtype).removeprefix("torch.")).reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)  # holds the array for as long as a tensor that shares its memory lives

    def _block(self, size: int) -> np.ndarray:
        """The smallest free block that is large enough and not much too large, or a new one with room to spare."""
        with self._choosing:
            fitting = [place for place, block in enumerate(self._free) if size <= len(block) <= 2 * size]
            if fitting:
                return self._free.pop(min(fitting, key=lambda place: len(self._free[place])))
        return np.empty(size + size // 8, np.uint8)
