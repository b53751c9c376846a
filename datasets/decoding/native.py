"""Compile loops for work that numpy cannot do in one pass, and give them access to Arrow's buffers."""

from __future__ import annotations

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
"""Decorator: compile at the first call, cache the machine code on disk, and release the GIL while the code runs."""


@intrinsic
def _pointer(_typing, address):  # type: ignore[no-untyped-def]
    return types.voidptr(types.int64), lambda context, builder, signature, arguments: builder.inttoptr(
        arguments[0], cgutils.voidptr_t
    )


@compiled
def view(address, dtype):  # type: ignore[no-untyped-def]
    """Return the memory that starts at `address` as an array of `dtype` and unknown length; callers check bounds."""
    return numba.carray(_pointer(address), (1 << 56,), dtype)  # type: ignore[call-arg]
