"""What the dense part of one training step costs on one rank, counted on the meta device, where nothing is computed."""

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
"""Of an element of a parameter and of its optimizer's state, as an optimizer updates them"""


@dataclass(frozen=True)
class DenseWork:
    """One step of the dense part on one rank; counts of one device, whatever the number of ranks."""

    parameters: int
    """Trained ones, each on every rank"""
    flops: float
    """Of the matrix products of the forward and the backward pass"""
    bytes: float
    """Read and written in the device's memory, by both passes and the update"""
    activations: int
    """Bytes that the forward pass keeps for the backward pass, beside the parameters; inputs are among them"""
    gradients: int
    """Bytes of the parameters' gradients, which ranks add up"""
    moments: int
    """Values that the optimizer keeps for each parameter"""


def dense_work(module: nn.Module, inputs: Sequence[Tensor], moments: int = 1) -> DenseWork:
    """The work of `module(*inputs)`, of its backward pass and of an optimizer with `moments` values a parameter.

    The module gives the loss, or a tuple that starts with it; it and the inputs may be on any device and stay as they
    are: only shapes, types and which inputs require a gradient matter. `inputs` are those of one rank. Bytes follow
    the rule of `Traffic`, and an update in fp32 reads each gradient, and reads and writes each parameter and moment.
    Matrix products are counted by torch's FlopCounterMode, pointwise arithmetic is not: memory bounds it.
    """
    module, inputs = on_meta(module), [_meta(value) for value in inputs]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    held = {_storage(value) for value in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if _storage(value) not in held:
            kept[_storage(value)] = value
        return value

    traffic = Traffic()
    with FlopCounterMode(display=False) as counter, traffic:
        with saved_tensors_hooks(keep, lambda value: value):
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
        activations=sum(value.untyped_storage().nbytes() for value in kept.values()),
        gradients=gradients,
        moments=moments,
    )


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module with its parameters and buffers on the meta device: no memory is taken, none is read."""
    values: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(value): _meta(value) for value in values})


def _meta(value: Tensor) -> Tensor:
    empty = torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


@dataclass(eq=False)
class _Value:
    """What one kernel made of a tensor, or an input: who reads how many bytes of it."""

    size: int
    maker: int | None
    readers: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        others = {kernel: size for kernel, size in self.readers.items() if kernel != self.maker}
        is_written = self.maker is not None and (others or not self.readers)
        return sum(others.values()) + (self.size if is_written else 0)


class Traffic(TorchDispatchMode):
    """Counts the bytes that a good implementation must move between memory and arithmetic units.

    A matrix product, a concatenation, a gather is a kernel of its own. Pointwise operations and reductions are fused
    into the kernel that made the latest of their operands. A value is written once if another kernel reads it (or if
    nothing does: it is a result), and each other kernel reads it once. Views are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[_Value] = []
        self._current: dict[int, _Value] = {}
        # So that no address is used again; not the tensors, whose gradients autograd copies where others hold them.
        self._alive: list[torch.UntypedStorage] = []
        self._kernels = 0

    @property
    def bytes(self) -> int:
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
        makers = [value.maker for value, _ in read if value.maker is not None]
        if fused and makers:
            kernel = max(makers)
        else:
            kernel, self._kernels = self._kernels, self._kernels + 1
        for value, size in read:
            value.readers[kernel] = max(value.readers.get(kernel, 0), min(size, value.size))
        for result in results:
            self._add(result, kernel)

    def _value(self, operand: Tensor) -> _Value:
        return self._current.get(_storage(operand)) or self._add(operand, None)

    def _add(self, tensor: Tensor, maker: int | None) -> _Value:
        value = _Value(tensor.untyped_storage().nbytes(), maker)
        self._current[_storage(tensor)] = value
        self._values.append(value)
        return value


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _is_fused(func: Any) -> bool:
    return bool({torch.Tag.pointwise, torch.Tag.reduction} & set(func.tags)) or func is torch.ops.aten._to_copy.default
