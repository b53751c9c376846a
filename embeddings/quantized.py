"""Tables rounded to fewer bits, on one rank: what FBGEMM's operators for inference read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from asymdiffrec.embeddings.managed.lookup import managed_ids
from asymdiffrec.embeddings.state import local_parts, table_weights
from asymdiffrec.embeddings.tables import FieldTables

Rounding = Literal["fp16", "int8", "int4"]

CUDA_ALIGNMENT = 16
"""Bytes that FBGEMM's GPU kernels want a row to be a multiple of; those for CPUs read rows of any length"""

SCALE_BYTES = 4
"""Of a row's scale and least value, both fp16"""


class QuantizedManaged(nn.Module):
    """The look-up of managed tables, as `ManagedTables` does it: ids to rows, and rows to their rounded sums."""

    def __init__(self, ids: ManagedCollisionCollection, bags: EmbeddingBagCollection) -> None:
        super().__init__()
        self.ids, self.bags = ids, bags

    def forward(self, ids: KeyedJaggedTensor) -> tuple[KeyedTensor, None]:
        return self.bags(self.ids(ids)), None


def quantize(model: DistributedModelParallel, rounding: Rounding) -> tuple[int, int]:
    """Have a model on one rank look up rounded tables from now on; the bytes of its weights before and after.

    int8 and int4 keep for each row its least value and 1 / 255 or 1 / 15 of its range, in fp16, and of each element the
    nearest of the 256 or 16 steps from there. Sums are of fp32. There is no backward pass any more. The weights before
    are still in memory as long as something else refers to them, such as an optimizer.
    """
    weights = {table: _whole(weight) for table, weight in table_weights(model).items()}
    rounded = {table: _rounded(weight, rounding) for table, weight in weights.items()}
    ids = managed_ids(model)
    for tables in [module for module in model.modules() if isinstance(module, FieldTables)]:
        if tables.ids:
            hashed = [config for config in tables.configs if config.name not in ids]
            tables.ids = _bags(hashed, rounded, tables.weighted, rounding)
        if tables.managed:
            managed = [config for config in tables.configs if config.name in ids]
            modules = {config.name: ids[config.name] for config in managed}
            collection = ManagedCollisionCollection(modules, managed, need_preprocess=False)
            tables.managed = QuantizedManaged(collection, _bags(managed, rounded, tables.weighted, rounding))
    after = sum(part.nbytes for parts in rounded.values() for part in parts if part is not None)
    return sum(weight.nbytes for weight in weights.values()), after


def _whole(weight: torch.Tensor) -> torch.Tensor:
    ((block, _, _),) = local_parts(weight)
    return block


def _rounded(weight: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The bytes of the elements, and of the scale and the least value of each row, as FBGEMM's operators take them."""
    if rounding == "fp16":
        return weight.half().view(torch.uint8), None
    packed = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight, int(rounding.removeprefix("int")))
    return packed[:, :-SCALE_BYTES], packed[:, -SCALE_BYTES:]


def _bags(
    configs: Sequence[EmbeddingBagConfig], rounded: Mapping[str, Any], weighted: bool, rounding: Rounding
) -> EmbeddingBagCollection:
    device = next(iter(rounded.values()))[0].device
    return EmbeddingBagCollection(
        [replace(config, data_type=DataType[rounding.upper()]) for config in configs],
        weighted,
        device,
        table_name_to_quantized_weights={config.name: rounded[config.name] for config in configs},
        row_alignment=CUDA_ALIGNMENT if device.type == "cuda" else 1,
    )
