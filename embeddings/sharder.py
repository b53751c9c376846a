"""TorchRec's sharder for our tables: which sharding types and kernels a plan may use, and how embeddings travel."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

from asymdiffrec.embeddings.config import COLUMN_SPLITS, TablesConfig


class TableSharder(EmbeddingBagCollectionSharder):
    """Offers all sharding types on every device, and the kernels that the job names.

    Sharding types that split columns are left out if the optimizer cannot be resharded across them.
    """

    def __init__(self, config: TablesConfig, device: str) -> None:
        super().__init__(qcomm_codecs_registry=_fp16_codecs(device) if config.communication == "fp16" else None)
        self._splits_columns = config.splits_columns
        per_table = [table.kernel for table in config.per_table.values() if table.kernel]
        self._kernels: list[str] = list(dict.fromkeys((*config.kernels, *per_table)))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types; those for cuda on cpu too, where TorchRec offers no row-wise type but runs it."""
        types = super().sharding_types("cuda")
        return types if self._splits_columns else [kind for kind in types if kind not in COLUMN_SPLITS]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the kernels of the job, or `dense` for data-parallel tables."""
        return ["dense"] if sharding_type == "data_parallel" else self._kernels


def _fp16_codecs(device: str) -> dict[str, Any] | None:
    """Return codecs for embeddings in fp16 and gradients in bf16, which has their range; gloo lacks bf16: fp16."""
    gradients = CommType.FP16 if device == "cpu" else CommType.BF16
    config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=gradients)
    return get_qcomm_codecs_registry(config, device=torch.device(device))
