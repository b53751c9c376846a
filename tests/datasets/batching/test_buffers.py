"""Memory that is used again, but never while a tensor lies in it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.batching.buffers import BufferPool

TYPES = [torch.bool, torch.int32, torch.int64, torch.float32]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=30))
def test_what_is_held_is_never_overwritten(asked):
    buffers, held = BufferPool(), []
    for number, (dtype, rows, columns, part) in enumerate(asked):
        tensor = buffers.empty(dtype, rows, columns)
        assert (tensor.shape, tensor.dtype) == ((rows, columns), dtype)
        value = number % 2 if dtype == torch.bool else number
        tensor.fill_(value)
        held.append((tensor[1:] if part else tensor, value))
        if number % 3 == 2:
            held.pop(0)
        assert all((one == content).all() for one, content in held)


def test_memory_is_used_again_when_its_last_tensor_is_gone():
    buffers = BufferPool()
    tensor = buffers.empty(torch.int64, 100)
    address, part = tensor.data_ptr(), tensor[50:]
    del tensor
    other = buffers.empty(torch.int64, 100)
    assert other.data_ptr() != address
    del part
    again = [buffers.empty(torch.int64, size) for size in (1000, 98)]
    assert [one.data_ptr() == address for one in again] == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_memory_is_page_locked_on_request():
    assert BufferPool(pinned=True).empty(torch.float32, 3).is_pinned()
