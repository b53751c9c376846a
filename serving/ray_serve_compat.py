"""Settings of Ray Serve 2.60 that have no public API: environment variables that Ray reads when it is imported.

Check each variable when Ray is upgraded: `ray.serve._private.constants` defines them.
"""

from __future__ import annotations

import os
import socket

LOGGER = "ray.serve"
"""Name of the logger of Ray Serve in drivers and replicas"""

_SETTINGS = {
    # Replicas receive requests from HAProxy instead of Ray's Python proxy, which is several times slower.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The thread that reads a request also handles it. A separate thread would only add a hand-over, because the
    # application already scores in separate threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # If a replica dies before it answers, HAProxy sends the request to another replica. Scoring twice is harmless.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    # Seconds for which an ending replica continues to answer. HAProxy notices within one second that the replica ends,
    # so the default of 30 seconds is not needed.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
# Internal ports of HAProxy. They are fixed by default, so a second cluster on the same host could not start.
_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")


def configure_haproxy(free_ports: bool) -> None:
    """Set the environment variables that are not set yet.

    If `free_ports` is true, HAProxy uses free ports of this host as its internal ports. Call this function before Ray
    is imported, in the process that starts Ray.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if free_ports:
        for name in _PORTS:
            os.environ.setdefault(name, str(free_port()))


def free_port() -> int:
    """Return a TCP port of this host that is free at this moment."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
