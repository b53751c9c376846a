"""How an export is served: settings that a process of its own, or each replica under Ray, starts from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from asymdiffrec.serving.aot_compile import compile_if_faster
from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.reloader import Reloader


@dataclass(frozen=True)
class ServiceConfig:
    folder: Path
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    threads: int = 1
    allow_user_classes: bool = False
    compiles: bool = False

    def service(self, tell: Callable[[str], None]) -> Service:
        """With the export loaded and checked; InputError where it cannot be served. From then on what comes to be in
        the folder is served, and `tell` is told of it."""
        torch.set_num_threads(1)  # a request is small; several of them are answered at once

        def prepare(engine: Engine) -> None:
            if self.compiles:
                compile_if_faster(engine, tell, allow_user_classes=self.allow_user_classes)

        live = Reloader(self.folder, allow_user_classes=self.allow_user_classes, tell=tell, prepare=prepare)
        live.load()
        live.watch()
        return Service(live, self.limits, self.token, self.threads)


def default_threads() -> int:
    """Threads that score, by default: the others read requests and write answers."""
    return max(1, len(os.sched_getaffinity(0)) // 2)
