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


def load_compiled_package(package: Path) -> Callable[..., torch.Tensor]:
    """Return the function in a package of AOTInductor, which takes tensors and returns one tensor.

    The public `torch._inductor.aoti_load_package` unpacks into a folder that it never removes; here the package is
    unpacked beside itself, where the caller removes it. The public call also flattens its arguments by a tree
    specification each time, which `boxed_run` does not need: it takes a list of tensors.
    """
    folder = package.with_suffix("")
    shutil.unpack_archive(package, folder, "zip")
    run = torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", False, 1, -1).boxed_run

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        (result,) = run(list(tensors))
        return result

    return call
