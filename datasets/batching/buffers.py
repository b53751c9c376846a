"""Reusable memory for batches. The first write to new memory takes about as long as all other work on a batch."""

from __future__ import annotations

import weakref
from math import prod
from threading import Lock
from typing import Protocol

import numpy as np
import torch


class Buffers(Protocol):
    """A source of uninitialised tensors."""

    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Return an uninitialised tensor."""


class FreshBuffers:
    """A source of tensors with new memory."""

    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Return an uninitialised tensor."""
        return torch.empty(shape, dtype=dtype)


class BufferPool:
    """A source of tensors. Memory that no tensor uses any more stays in the pool and is used for later tensors.

    If `pinned` is true, the memory is page-locked, and torch's allocator for page-locked memory replaces the pool.

    >>> pool = BufferPool()
    >>> tensor = pool.empty(torch.float32, 100, 4)
    >>> address = tensor.data_ptr()
    >>> del tensor
    >>> pool.empty(torch.float32, 100, 4).data_ptr() == address
    True
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[np.ndarray] = []
        self._lock = Lock()

    def empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Return an uninitialised tensor; thread-safe."""
        if self._pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = prod(shape) * dtype.itemsize
        block = self._take_block(size)
        array = block[:size].view(str(dtype).removeprefix("torch.")).reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)  # the array lives as long as any tensor that shares its memory

    def _take_block(self, size: int) -> np.ndarray:
        """Return the smallest free block with `size` to 2 * `size` bytes, or a new block of 9/8 * `size` bytes."""
        with self._lock:
            fitting = [index for index, block in enumerate(self._free) if size <= len(block) <= 2 * size]
            if fitting:
                return self._free.pop(min(fitting, key=lambda index: len(self._free[index])))
        return np.empty(size + size // 8, np.uint8)
