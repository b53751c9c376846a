"""TorchRec's sharder of our look-ups: what a plan may choose from, and how embeddings travel."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

from asymdiffrec.embeddings.tables import COLUMN_SPLITS, TablesConfig


class TableSharder(EmbeddingBagCollectionSharder):
    """All sharding types on every device, and the kernels that the job names."""

    def __init__(self, config: TablesConfig, device: str) -> None:
        super().__init__(qcomm_codecs_registry=_half(device) if config.communication == "fp16" else None)
        self._splits_columns = config.splits_columns
        asked = [table.kernel for table in config.per_table.values() if table.kernel]
        self._kernels: list[str] = list(dict.fromkeys((*config.kernels, *asked)))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types("cuda")  # TorchRec offers no row-wise choice for cpu, though it runs there
        return types if self._splits_columns else [kind for kind in types if kind not in COLUMN_SPLITS]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return ["dense"] if sharding_type == "data_parallel" else self._kernels


def _half(device: str) -> dict[str, Any] | None:
    """Codecs for embeddings in fp16; their gradients in bf16, whose range they need, but gloo lacks it."""
    gradients = CommType.FP16 if device == "cpu" else CommType.BF16
    config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=gradients)
    return get_qcomm_codecs_registry(config, device=torch.device(device))
