"""What the project uses of torch.distributed beyond its documented interface; check it when torch is upgraded.

Written against torch 2.13. Private classes of sharded tensors are used in embeddings/torchrec_compat.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def default_process_group(backend: str, **options: Any) -> Iterator[None]:
    """Initialise the default process group for the block, and destroy it at the end; `options` as torch takes them.

    torch replaces `sys.excepthook` at every initialisation by a hook that puts `[rankN]: ` before each line of a
    traceback, calls the hook before it, and stays when the group is destroyed. After nine groups a line starts with
    nine prefixes. So the hook from before is put back at once.
    """
    hook = sys.excepthook
    dist.init_process_group(backend, **options)
    sys.excepthook = hook
    try:
        yield
    finally:
        dist.destroy_process_group()
