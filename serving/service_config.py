"""The configuration of a serving process or of a Ray Serve replica, and the start of the service."""

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
    """The settings of a service. A ServiceConfig can be pickled, because Ray Serve sends it to replicas.

    app = ServiceConfig(Path("model")).start(print).application()
    """

    folder: Path
    """Export folder, or a link to an export folder"""
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    """Token that requests must send; None: requests need no token"""
    threads: int = 1
    """Number of scoring threads"""
    allow_user_classes: bool = False
    """Whether the user-defined classes that the export names may be imported"""
    compile_dense: bool = False
    """Whether the dense part is compiled for this host, see `aot_compile`"""

    def start(self, report: Callable[[str], None]) -> Service:
        """Load the export, run its self-test, watch its folder for newer exports, and return the service.

        `report` is called with one line for each event, also after this function returned. Raises InputError if the
        export cannot be loaded. Sets the number of torch threads of this process to 1.
        """
        # Requests are small: scoring several requests in parallel is faster than splitting each request over threads.
        torch.set_num_threads(1)

        def prepare(engine: Engine) -> None:
            if self.compile_dense:
                compile_if_faster(engine, report, allow_user_classes=self.allow_user_classes)

        reloader = Reloader(self.folder, allow_user_classes=self.allow_user_classes, report=report, prepare=prepare)
        reloader.load()
        reloader.watch()
        return Service(reloader, self.limits, self.token, self.threads)


def default_threads() -> int:
    """Return the default number of scoring threads: half of the cores. The other half handles the HTTP connections."""
    return max(1, len(os.sched_getaffinity(0)) // 2)
