"""What TorchRec and FBGEMM warn about at every start, and a user can do nothing about."""

from __future__ import annotations

import logging
import warnings


def quiet_torchrec() -> None:
    """Leave out these warnings in this process; to be called once where a program starts."""
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "fbgemm::dense_embedding_codegen_lookup_function", UserWarning)
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.(reduce_scatter|all_gather)_\w+` is deprecated", FutureWarning
    )
