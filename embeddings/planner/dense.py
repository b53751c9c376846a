"""Costs of the dense part of one training step on one rank, counted on the meta device without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

MASTER_BYTES = 4
"""Bytes of one value of a parameter or of its optimizer state during an update. Updates are in fp32."""


@dataclass(frozen=True)
class DenseWork:
    """Work of one step of the dense part on one device; it does not depend on the number of ranks."""

    parameters: int
    """Number of trained parameters; every rank has all of them"""
    flops: float
    """Operations of the matrix products of the forward and the backward pass"""
    bytes: float
    """Bytes read and written in the device's memory, by both passes and the update"""
    activations: int
    """Bytes that the forward pass keeps for the backward pass, including inputs, excluding parameters"""
    gradients: int
    """Bytes of the parameters' gradients, which are all-reduced"""
    moments: int
    """Values that the optimizer keeps for each parameter"""


def dense_work(module: nn.Module, inputs: Sequence[Tensor], moments: int = 1) -> DenseWork:
    """Return the work of `module(*inputs)`, its backward pass, and an optimizer with `moments` values per parameter.

    The module returns the loss, or a tuple that starts with the loss. `inputs` are the inputs of one rank. The module
    and the inputs can be on any device and do not change. Only shapes and types matter, and which inputs require a
    gradient. Bytes are counted as `Traffic` describes. The update is in fp32: it reads each gradient, and reads and
    writes each parameter and moment. torch's FlopCounterMode counts the matrix products. Pointwise arithmetic is not
    counted, because memory traffic bounds its time.

    >>> dense_work(nn.Sequential(nn.Linear(8, 1), nn.Flatten(0), nn.Softmax(0)), [torch.empty(1, 8)]).parameters
    9
    """
    module, inputs = on_meta(module), [_meta(value) for value in inputs]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    of_module = {_storage(value) for value in (*module.parameters(), *module.buffers())}
    activations: dict[int, Tensor] = {}

    def record(value: Tensor) -> Tensor:
        if _storage(value) not in of_module:
            activations[_storage(value)] = value
        return value

    traffic = Traffic()
    with FlopCounterMode(display=False) as counter, traffic:
        with saved_tensors_hooks(record, lambda value: value):
            output = module(*inputs)
        loss = output[0] if isinstance(output, tuple) else output
        loss.backward()
    parameters = sum(parameter.numel() for parameter in trained)
    gradients = sum(parameter.nbytes for parameter in trained)
    update = gradients + 2 * MASTER_BYTES * (1 + moments) * parameters
    return DenseWork(
        parameters=parameters,
        flops=float(counter.get_total_flops()),
        bytes=float(traffic.bytes + update),
        activations=sum(value.untyped_storage().nbytes() for value in activations.values()),
        gradients=gradients,
        moments=moments,
    )


def on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of a module with its parameters and buffers on the meta device, without allocating memory."""
    values: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(value): _meta(value) for value in values})


def _meta(value: Tensor) -> Tensor:
    empty = torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


@dataclass(eq=False)
class _Value:
    """An input, or the content of a tensor after one kernel, with the number of bytes that each kernel reads."""

    size: int
    writer: int | None
    readers: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        others = {kernel: size for kernel, size in self.readers.items() if kernel != self.writer}
        is_written = self.writer is not None and (others or not self.readers)
        return sum(others.values()) + (self.size if is_written else 0)


class Traffic(TorchDispatchMode):
    """A counter of the bytes that a good implementation must move between memory and arithmetic units.

    A matrix product, a concatenation or a gather is a separate kernel. Pointwise operations and reductions are fused
    into the kernel that wrote the latest of their operands. A value is written once if another kernel reads it. A value
    that no kernel reads is a result, and is written once too. Each other kernel reads a value once. Views are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[_Value] = []
        self._current: dict[int, _Value] = {}
        # Keep storages alive so that no address is reused. Tensors must not be kept: autograd copies gradient tensors
        # that have another reference.
        self._alive: list[torch.UntypedStorage] = []
        self._kernels = 0

    @property
    def bytes(self) -> int:
        """Bytes moved so far."""
        return sum(value.bytes for value in self._values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive += [value.untyped_storage() for value in (*operands, *results)]
        is_view = {_storage(value) for value in results} <= {_storage(value) for value in operands}
        if func._schema.is_mutable or not is_view:
            self._record(operands, results, _is_fused(func))
        return result

    def _record(self, operands: list[Tensor], results: list[Tensor], fused: bool) -> None:
        read = [(self._value(operand), operand.nbytes) for operand in operands]
        writers = [value.writer for value, _ in read if value.writer is not None]
        if fused and writers:
            kernel = max(writers)
        else:
            kernel, self._kernels = self._kernels, self._kernels + 1
        for value, size in read:
            value.readers[kernel] = max(value.readers.get(kernel, 0), min(size, value.size))
        for result in results:
            self._add(result, kernel)

    def _value(self, operand: Tensor) -> _Value:
        return self._current.get(_storage(operand)) or self._add(operand, None)

    def _add(self, tensor: Tensor, writer: int | None) -> _Value:
        value = _Value(tensor.untyped_storage().nbytes(), writer)
        self._current[_storage(tensor)] = value
        self._values.append(value)
        return value


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _is_fused(func: Any) -> bool:
    return bool({torch.Tag.pointwise, torch.Tag.reduction} & set(func.tags)) or func is torch.ops.aten._to_copy.default
