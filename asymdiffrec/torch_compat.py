"""All uses of torch beyond its documented interface; check them when torch is upgraded.

Written against torch 2.13. Private classes of sharded tensors are used in embeddings/torchrec_compat.py.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def default_process_group(backend: str, **options: Any) -> Iterator[None]:
    """Initialise the default process group for the block, and destroy it at the end; `options` are passed to torch.

    At every initialisation torch replaces `sys.excepthook` and never restores it. The new hook writes `[rankN]: `
    before each line of a traceback and calls the previous hook: after nine groups each line has nine prefixes.
    Therefore the previous hook is restored immediately.
    """
    hook = sys.excepthook
    dist.init_process_group(backend, **options)
    sys.excepthook = hook
    try:
        yield
    finally:
        dist.destroy_process_group()


def load_compiled_package(package: Path) -> Callable[..., torch.Tensor]:
    """Return the function in a package of AOTInductor. The function takes tensors and returns one tensor.

    The public `torch._inductor.aoti_load_package` unpacks into a folder that it never removes. This function unpacks
    next to the package, where the caller can remove the folder. The public function also flattens its arguments in
    every call; `boxed_run` takes a flat list of tensors.
    """
    folder = package.with_suffix("")
    shutil.unpack_archive(package, folder, "zip")
    run = torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", False, 1, -1).boxed_run

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        (result,) = run(list(tensors))
        return result

    return call
