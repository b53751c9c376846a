"""Under Ray Serve: each replica is the application with an export of its own, behind HAProxy."""

from __future__ import annotations

import logging
import os
import threading

from starlette.applications import Starlette

from asymdiffrec.serving.start import Serving

NAME = "asymdiffrec"


def use_haproxy() -> None:
    """Have Ray Serve hand requests to replicas by HAProxy, without which it is several times slower; a request whose
    replica dies before it answers is asked of another one, for scoring twice changes nothing.

    To be called before Ray is imported, and where Ray is started.
    """
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "3")


def deploy(serving: Serving, host: str, port: int, least: int, most: int) -> None:
    """Start it on the cluster that this process is connected to, with between `least` and `most` replicas as there are
    requests; returns once it answers."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config={"log_level": "ERROR"})

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


def until(end: threading.Event, alone: bool) -> None:
    """Serve until then, and end the application; and Serve with it, where it is alone on its cluster."""
    from ray import serve

    try:
        end.wait()
    finally:
        serve.shutdown() if alone else serve.delete(NAME)
