"""`asymdiffrec serve`: an export behind HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from asymdiffrec.datasets.errors import InputError
from asymdiffrec.trainer.commands.shell import console

TOKEN = "ASYMDIFFREC_TOKEN"


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of `export`")],
    host: Annotated[str, typer.Option(help="address to listen on; this machine alone when left out")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    threads: Annotated[
        int | None, typer.Option(min=1, help="requests that are scored at once; one for each core when left out")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, help="requests at once, beyond which they are refused")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="samples of a request, at most")] = 10_000,
    body: Annotated[int, typer.Option(min=1, help="MiB of a request, at most")] = 16,
    own_classes: Annotated[
        bool, typer.Option("--own-classes", help="import the classes of its own that the export names")
    ] = False,
) -> None:
    """Answer POST /v1/score, JSON or Arrow, with scores; also /health, /ready, /metrics and /v1/model.

    Where ASYMDIFFREC_TOKEN is set, requests need it: Authorization: Bearer TOKEN. Ctrl-C ends it.
    """
    import torch
    import uvicorn

    from asymdiffrec.serving.app import Limits, Service
    from asymdiffrec.serving.bundle import load_bundle
    from asymdiffrec.serving.engine import Engine

    torch.set_num_threads(1)  # a request is small; several of them are answered at once
    token = os.environ.get(TOKEN)
    engine = Engine(load_bundle(model, own_classes=own_classes))
    engine.warm()
    service = Service(Limits(body << 20, samples, waiting), token, threads or len(os.sched_getaffinity(0)))
    service.engine = engine
    with _listening(host, port) as listening:
        where = f"http://{host}:{listening.getsockname()[1]}"
        console.print(f"Version {engine.version} of {model} at {where}", highlight=False, soft_wrap=True)
        if not token and not _is_loopback(host):
            console.print(f"Whoever reaches {host} may ask: set {TOKEN}", highlight=False, soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(service.application(), log_level="warning")).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
