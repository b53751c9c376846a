"""A program that runs a Ray cluster of three nodes on loopback until its standard input is closed."""

import json
import sys

from ray.cluster_utils import Cluster

NODES = 3
AGENT_PORT = 52370
"""Port of the first node's agent; on one host every node needs a different port"""
METRICS_PORT = 52380
"""Port at which the first node's agent shows its metrics to Prometheus"""


def main(port: int) -> None:
    """Start the nodes with the dashboard on `port`, and print their addresses as JSON."""
    cluster = Cluster()
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    for number, settings in enumerate((head, {"num_cpus": 1}, {"num_cpus": 1})):
        ports = {"dashboard_agent_listen_port": AGENT_PORT + number, "metrics_export_port": METRICS_PORT + number}
        cluster.add_node(
            **settings, **ports, _system_config={"metrics_report_interval_ms": 500} if not number else None
        )
    print(json.dumps({"url": f"http://{cluster.head_node.webui_url}", "address": cluster.address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
