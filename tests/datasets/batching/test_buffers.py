"""The buffer pool reuses memory, but never while a tensor refers to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.batching.buffers import BufferPool

TYPES = [torch.bool, torch.int32, torch.int64, torch.float32]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=30))
def test_the_memory_of_a_live_tensor_is_never_reused(requests):
    buffers, live = BufferPool(), []
    for number, (dtype, rows, columns, part) in enumerate(requests):
        tensor = buffers.empty(dtype, rows, columns)
        assert (tensor.shape, tensor.dtype) == ((rows, columns), dtype)
        value = number % 2 if dtype == torch.bool else number
        tensor.fill_(value)
        live.append((tensor[1:] if part else tensor, value))
        if number % 3 == 2:
            live.pop(0)
        assert all((one == content).all() for one, content in live)


def test_memory_is_reused_after_its_last_tensor_is_gone():
    buffers = BufferPool()
    tensor = buffers.empty(torch.int64, 100)
    address, part = tensor.data_ptr(), tensor[50:]
    del tensor
    other = buffers.empty(torch.int64, 100)
    assert other.data_ptr() != address
    del part
    tensors = [buffers.empty(torch.int64, size) for size in (1000, 98)]
    assert [tensor.data_ptr() == address for tensor in tensors] == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_memory_is_page_locked():
    assert BufferPool(pinned=True).empty(torch.float32, 3).is_pinned()
