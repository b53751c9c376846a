"""Serve an export under Ray Serve: replicas behind HAProxy run the application, each with a copy of the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from asymdiffrec.serving.ray_serve_compat import LOGGER
from asymdiffrec.serving.service_config import ServiceConfig

APPLICATION = "asymdiffrec"
"""Name of the application and the deployment in Ray Serve"""
REQUESTS_PER_REPLICA = 4
"""Target number of requests in progress per replica; above this number Ray Serve adds replicas"""


@contextmanager
def deployment(
    config: ServiceConfig, host: str, port: int, min_replicas: int, max_replicas: int, owns_cluster: bool
) -> Iterator[None]:
    """Run the service during the block, on the Ray cluster to which this process is connected.

    The block starts when the service answers. Ray Serve runs between `min_replicas` and `max_replicas` replicas,
    depending on the load. After the block the application is deleted. If `owns_cluster` is true, Ray Serve is shut down
    too, because HAProxy would otherwise run after the end of Ray. Raises RuntimeError if Ray Serve cannot start the
    service.
    """
    from ray import serve

    try:
        _deploy(config, host, port, min_replicas, max_replicas)
        yield
    finally:
        serve.shutdown() if owns_cluster else serve.delete(APPLICATION)


def _deploy(config: ServiceConfig, host: str, port: int, min_replicas: int, max_replicas: int) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger(LOGGER).setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(host=host, port=port),
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )

    def build_application() -> Starlette:
        return config.start(logging.getLogger(LOGGER).error).application()

    replicas = (
        {"num_replicas": min_replicas}
        if min_replicas == max_replicas
        else {
            "autoscaling_config": {
                "min_replicas": min_replicas,
                "max_replicas": max_replicas,
                "target_ongoing_requests": REQUESTS_PER_REPLICA,
            }
        }
    )
    serve_deployment = serve.deployment(
        # The argument is a function that each replica calls, because a loaded model cannot be pickled.
        serve.ingress(build_application)(),
        name=APPLICATION,
        # Above the application's limit, because the application refuses further requests; Ray Serve would queue them.
        max_ongoing_requests=config.limits.requests + 8,
        ray_actor_options={"num_cpus": 1},
        **replicas,
    )
    serve.run(serve_deployment.bind(), name=APPLICATION, route_prefix="/")
