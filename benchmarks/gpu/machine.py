"""The GPU machine that libraries are packed for, and the versions of libraries that fit it."""

from __future__ import annotations

import sys
from typing import Any

MACHINE: dict[str, Any] = {"python": "3.12", "torch": "2.11", "cuda": "13", "capability": [9, 0]}
"""Versions on the GPU machine, and the compute capability of its GPU. An H100 or H200 has 9.0"""
FBGEMM = "fbgemm-gpu==1.6.0"
"""The FBGEMM build for torch 2.11 and CUDA 13"""
TORCHREC = "torchrec==1.8.0"
"""The version that the project uses everywhere. With `packages.SHIMS` it runs on FBGEMM 1.6.0. TorchRec 1.6.1, the
version for this FBGEMM, would need changes in our planner"""


def this_machine() -> dict[str, Any]:
    """Return the values of this host under the keys of `MACHINE`. capability is None without a GPU."""
    import torch

    return {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "cuda": (torch.version.cuda or "none").split(".")[0],
        "capability": list(torch.cuda.get_device_capability()) if torch.cuda.is_available() else None,
    }
