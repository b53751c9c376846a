"""Under Ray Serve: each replica is the application with an export of its own, behind HAProxy."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from asymdiffrec.serving.service_config import ServiceConfig

NAME = "asymdiffrec"


def configure_haproxy(own_ports: bool) -> None:
    """Have Ray Serve hand requests to replicas by HAProxy, without which it is several times slower, and to the
    application in the thread that reads them, for it scores in threads of its own. A request whose replica dies before
    it answers is asked of another one: scoring twice changes nothing.

    HAProxy's own ports are the same for all clusters of a machine, unless each has its `own_ports`. To be called before
    Ray is imported, and where Ray is started.
    """
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "3")
    # Seconds that a replica goes on before it ends: HAProxy, which is told within one, needs no half a minute.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5")
    if own_ports:
        for use in ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP"):
            os.environ.setdefault(f"RAY_SERVE_{use}_PORT", str(free_port()))


def free_port() -> int:
    """Of this machine, at this moment."""
    with socket.create_server(("", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def deployment(serving: ServiceConfig, host: str, port: int, least: int, most: int, alone: bool) -> Iterator[None]:
    """On the cluster that this process is connected to, with between `least` and `most` replicas as there are requests;
    entered once it answers. Ends the application, and Serve with it where it is `alone` on its cluster: HAProxy would
    outlive Ray. Raises RuntimeError where Ray Serve cannot start it."""
    from ray import serve

    try:
        _deploy(serving, host, port, least, most)
        yield
    finally:
        serve.shutdown() if alone else serve.delete(NAME)


def _deploy(serving: ServiceConfig, host: str, port: int, least: int, most: int) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(host=host, port=port),
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )

    def build() -> Starlette:
        return serving.service(logging.getLogger("ray.serve").error).application()

    replicas = (
        {"num_replicas": least}
        if least == most
        else {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 4}}
    )
    deployment = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        max_ongoing_requests=serving.limits.waiting + 8,  # the application refuses what is too much, at once
        ray_actor_options={"num_cpus": 1},
        **replicas,
    )
    serve.run(deployment.bind(), name=NAME, route_prefix="/")
