"""Warnings of TorchRec and FBGEMM that appear at every start and that a user cannot act on.

This file is separate from `torchrec_compat.py` because commands call it before they import torch.
"""

from __future__ import annotations

import logging
import warnings


def silence_torchrec_warnings() -> None:
    """Suppress these warnings in this process. Call this function once, at the start of a program."""
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "fbgemm::dense_embedding_codegen_lookup_function", UserWarning)
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.(reduce_scatter|all_gather)_\w+` is deprecated", FutureWarning
    )
