"""The GPU machine that libraries are packed for, and which versions fit it."""

from __future__ import annotations

import sys
from typing import Any

MACHINE: dict[str, Any] = {"python": "3.12", "torch": "2.11", "cuda": "13", "capability": [9, 0]}
"""Versions of the machine, and the compute capability of its GPU: an H100 or H200 has 9.0"""
FBGEMM = "fbgemm-gpu==1.6.0"
"""The build for torch 2.11 and CUDA 13"""
TORCHREC = "torchrec==1.8.0"
"""The project's own version. It runs on FBGEMM 1.6.0 with `packages.SHIMS`; TorchRec 1.6.1, which was made for this
FBGEMM, would need changes in our planner"""


def this_machine() -> dict[str, Any]:
    """Return what `MACHINE` says, of the machine that this process runs on; capability is None without a GPU."""
    import torch

    return {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "cuda": (torch.version.cuda or "none").split(".")[0],
        "capability": list(torch.cuda.get_device_capability()) if torch.cuda.is_available() else None,
    }
