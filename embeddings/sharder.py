"""TorchRec's sharder for our tables: the sharding types and kernels of a plan, and how ranks exchange embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

from asymdiffrec.embeddings.config import COLUMN_SPLITS, TablesConfig


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with all sharding types on every device, and with the kernels that the job allows.

    Sharding types that split columns are left out if the optimizer state cannot be resharded across column splits.
    """

    def __init__(self, config: TablesConfig, device: str) -> None:
        super().__init__(qcomm_codecs_registry=_fp16_codecs(device) if config.communication == "fp16" else None)
        self._splits_columns = config.splits_columns
        per_table = [table.kernel for table in config.per_table.values() if table.kernel]
        self._kernels: list[str] = list(dict.fromkeys((*config.kernels, *per_table)))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types of cuda, also on cpu: TorchRec offers no row-wise type there, but can run it."""
        types = super().sharding_types("cuda")
        return types if self._splits_columns else [kind for kind in types if kind not in COLUMN_SPLITS]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the kernels of the job, or `dense` for data-parallel tables."""
        return ["dense"] if sharding_type == "data_parallel" else self._kernels


def _fp16_codecs(device: str) -> dict[str, Any] | None:
    """Return codecs: fp16 for embeddings; bf16 for gradients, because the range of fp16 is too small for them.

    On CPU gradients use fp16 too, because gloo does not support bf16.
    """
    gradients = CommType.FP16 if device == "cpu" else CommType.BF16
    config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=gradients)
    return get_qcomm_codecs_registry(config, device=torch.device(device))
