"""`asymdiffrec serve`: an export behind HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.console import console

if TYPE_CHECKING:
    from asymdiffrec.serving.service_config import ServiceConfig

TOKEN = "ASYMDIFFREC_TOKEN"


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="folder of `export`, or a link to one; what the link is pointed at later is swapped in",
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen on; this machine alone when left out")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    threads: Annotated[
        int | None, typer.Option(min=1, help="threads that score; one for every second core when left out")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, help="requests at once, beyond which they are refused")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="samples of a request, at most")] = 10_000,
    body: Annotated[int, typer.Option(min=1, help="MiB of a request, at most")] = 16,
    allow_user_classes: Annotated[
        bool, typer.Option("--allow-user-classes", help="import the classes of its own that the export names")
    ] = False,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="compile the dense part for this host, which takes a C++ compiler and half a minute for each version; "
            "used for small requests where it measures faster",
        ),
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="as replicas under Ray Serve, behind HAProxy")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --ray; one of this machine alone when left out")
    ] = None,
    replicas: Annotated[
        str, typer.Option(metavar="N|LEAST:MOST", help="of --ray, with a CPU each; by load between two numbers")
    ] = "1",
) -> None:
    """Answer POST /v1/score and /v1/rank, JSON or Arrow; also /docs, /ready, /health, /metrics and /v1/model.

    Where ASYMDIFFREC_TOKEN is set, requests need it: Authorization: Bearer TOKEN. Ctrl-C ends it.
    """
    from asymdiffrec.serving.app import Limits
    from asymdiffrec.serving.service_config import ServiceConfig, default_threads

    token = os.environ.get(TOKEN) or None
    if not ray and (address or replicas != "1"):
        raise InputError("--replicas and --address are for --ray")
    if ray and port == 0:
        raise InputError("--port 0: with --ray it has to be a number")
    # A replica has one core.
    scoring = threads or (1 if ray else default_threads())
    limits = Limits(body << 20, samples, waiting)
    serving = ServiceConfig(
        model.absolute(), limits, token, scoring, allow_user_classes=allow_user_classes, compiles=compile_
    )
    if not token and not _is_loopback(host):
        _say(f"Whoever reaches {host} may ask: set {TOKEN}")
    least_and_most = _between(replicas)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what has been started is ended then, too
    with contextlib.suppress(KeyboardInterrupt):
        if ray:
            _under_ray(serving, host, port, address, *least_and_most)
        else:
            _in_this_process(serving, host, port)


def _in_this_process(serving: ServiceConfig, host: str, port: int) -> None:
    import uvicorn

    service = serving.service(_say)
    with _listening(host, port) as listening:
        where = f"http://{host}:{listening.getsockname()[1]}"
        _say(f"Version {service.live.engine().version} of {serving.folder} at {where}")
        config = uvicorn.Config(service.application(), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


def _under_ray(serving: ServiceConfig, host: str, port: int, address: str | None, least: int, most: int) -> None:
    from asymdiffrec.cluster.errors import ClusterError, last_line
    from asymdiffrec.cluster.launch import stay_on_loopback
    from asymdiffrec.serving.export import load_export
    from asymdiffrec.serving.ray_serve import configure_haproxy, deployment

    version = load_export(serving.folder, allow_user_classes=serving.allow_user_classes).manifest.version
    _listening(host, port).close()
    configure_haproxy(own_ports=address is None)
    if address is None:
        stay_on_loopback()
    from asymdiffrec.cluster.ray_connection import ray_connection  # Ray takes seconds to import

    with ExitStack() as stack:
        with console.status("starting replicas"):
            stack.enter_context(ray_connection(address, most))
            try:
                stack.enter_context(deployment(serving, host, port, least, most, alone=address is None))
            except RuntimeError as error:
                raise ClusterError(f"Ray Serve does not start: {last_line(error)}") from error
        _say(f"Version {version} of {serving.folder} at http://{host}:{port}")
        _say(
            "Ray Serve's replicas and HAProxy's own ports listen on all addresses of their machines, whatever --host is"
        )
        threading.Event().wait()


def _between(replicas: str) -> tuple[int, int]:
    least, colon, most = replicas.partition(":")
    try:
        found = int(least), int(most) if colon else int(least)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise InputError(f"--replicas {replicas}: expected a number such as 2, or two such as 1:4")
    return found


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


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
