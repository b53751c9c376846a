"""Compiling the loops that numpy cannot express in one pass, and reading Arrow's buffers within them."""

from __future__ import annotations

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
"""Machine code at the first call, kept on disk for the next process; runs beside Python's other threads"""


@intrinsic
def _pointer(_typing, address):  # type: ignore[no-untyped-def]
    return types.voidptr(types.int64), lambda context, builder, signature, arguments: builder.inttoptr(
        arguments[0], cgutils.voidptr_t
    )


@compiled
def view(address, dtype):  # type: ignore[no-untyped-def]
    """The memory from an address on as an array of `dtype`, without an end: who indexes it answers for the bounds."""
    return numba.carray(_pointer(address), (1 << 56,), dtype)  # type: ignore[call-arg]
