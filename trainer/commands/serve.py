"""`asymdiffrec serve`: serve an export over HTTP."""

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
from asymdiffrec.trainer.console import console

if TYPE_CHECKING:
    from asymdiffrec.serving.service_config import ServiceConfig

TOKEN = "ASYMDIFFREC_TOKEN"


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="export folder, or a symbolic link to an export folder; when a new export replaces it, the running "
            "server loads the new export",
        ),
    ],
    host: Annotated[str, typer.Option(help="address to listen on; the default serves this host only")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any free port")] = 8080,
    threads: Annotated[
        int | None, typer.Option(min=1, help="scoring threads; default: half of the cores, or 1 with --ray")
    ] = None,
    max_requests: Annotated[
        int,
        typer.Option(min=1, help="maximum number of requests in progress; further requests get status 503 immediately"),
    ] = 64,
    max_samples: Annotated[
        int, typer.Option(min=1, help="maximum number of samples or candidates in one request")
    ] = 10_000,
    max_body_mib: Annotated[int, typer.Option(min=1, help="maximum size of one request in MiB")] = 16,
    allow_user_classes: Annotated[
        bool, typer.Option("--allow-user-classes", help="import the user-defined classes that the export names")
    ] = False,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="compile the dense part for this host and use it for small requests if it is faster; needs a C++ "
            "compiler; compiling takes about half a minute for each version of the model",
        ),
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="run replicas under Ray Serve, behind HAProxy")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --ray; default: a cluster started on this host")
    ] = None,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX", help="number of replicas for --ray, with one CPU each; MIN:MAX scales by load"
        ),
    ] = "1",
) -> None:
    """Serve an export over HTTP: POST /v1/score and /v1/rank, as JSON or Arrow.

    The server also answers GET /docs, /openapi.json, /ready, /health, /metrics and /v1/model.

    If the environment variable ASYMDIFFREC_TOKEN is set, requests must send "Authorization: Bearer TOKEN".

    Ctrl-C ends the server.
    """
    from asymdiffrec.serving.app import Limits
    from asymdiffrec.serving.service_config import ServiceConfig, default_threads

    token = os.environ.get(TOKEN) or None
    if not ray and (address or replicas != "1"):
        raise InputError("--replicas and --address need --ray")
    if ray and port == 0:
        raise InputError("--port 0: with --ray, a port from 1 to 65535 is expected")
    config = ServiceConfig(
        model.absolute(),
        Limits(max_body_mib << 20, max_samples, max_requests),
        token,
        threads or (1 if ray else default_threads()),
        allow_user_classes=allow_user_classes,
        compile_dense=compile_,
    )
    if not token and not _is_loopback(host):
        _print_line(f"warning: {host} accepts connections from other hosts and no token is set; set {TOKEN}")
    min_replicas, max_replicas = _replica_range(replicas)
    # SIGTERM raises KeyboardInterrupt too, so that Ctrl-C and SIGTERM stop the same things.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        if ray:
            _serve_under_ray(config, host, port, address, min_replicas, max_replicas)
        else:
            _serve_in_process(config, host, port)


def _serve_in_process(config: ServiceConfig, host: str, port: int) -> None:
    import uvicorn

    service = config.start(_print_line)
    with _listen(host, port) as server_socket:
        address = f"http://{host}:{server_socket.getsockname()[1]}"
        _print_line(f"Version {service.reloader.engine().version} of {config.folder} at {address}")
        uvicorn_config = uvicorn.Config(service.application(), log_level="warning")
        uvicorn.Server(uvicorn_config).run(sockets=[server_socket])


def _serve_under_ray(
    config: ServiceConfig, host: str, port: int, address: str | None, min_replicas: int, max_replicas: int
) -> None:
    from asymdiffrec.cluster.errors import ClusterError, last_line
    from asymdiffrec.cluster.launch import stay_on_loopback
    from asymdiffrec.serving.export import load_export
    from asymdiffrec.serving.ray_serve import deployment
    from asymdiffrec.serving.ray_serve_compat import configure_haproxy

    # Check the export and the port before Ray starts: the error of a replica would appear only in its log.
    version = load_export(config.folder, allow_user_classes=config.allow_user_classes).manifest.version
    _listen(host, port).close()
    configure_haproxy(free_ports=address is None)
    if address is None:
        stay_on_loopback()
    from asymdiffrec.cluster.ray_connection import ray_connection  # Ray takes seconds to import

    with ExitStack() as stack:
        with console.status("starting replicas"):
            stack.enter_context(ray_connection(address, max_replicas))
            try:
                stack.enter_context(
                    deployment(config, host, port, min_replicas, max_replicas, owns_cluster=address is None)
                )
            except RuntimeError as error:
                raise ClusterError(f"Ray Serve does not start: {last_line(error)}") from error
        _print_line(f"Version {version} of {config.folder} at http://{host}:{port}")
        _print_line(
            "warning: Ray Serve's replicas and HAProxy's internal ports listen on all network interfaces; --host does "
            "not change this"
        )
        threading.Event().wait()


def _replica_range(replicas: str) -> tuple[int, int]:
    """Return the minimum and maximum number of replicas."""
    first, colon, second = replicas.partition(":")
    try:
        minimum, maximum = int(first), int(second) if colon else int(first)
    except ValueError:
        minimum, maximum = 0, 0
    if not 1 <= minimum <= maximum:
        raise InputError(
            f"--replicas {replicas}: expected a number from 1, such as 2, or a minimum and a maximum, such as 1:4"
        )
    return minimum, maximum


def _print_line(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen on this address ({error.strerror})") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
