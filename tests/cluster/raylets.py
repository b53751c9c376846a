"""A Ray cluster of three nodes on loopback: a program that ends when its standard input does."""

import json
import sys

from ray.cluster_utils import Cluster

AGENT = 52370
"""The first port of the nodes' agents, which would all take the same one"""
METRICS = 52380
"""The first port at which a node's agent shows its metrics to Prometheus"""


def main(port: int) -> None:
    cluster = Cluster()
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    for number, settings in enumerate((head, {"num_cpus": 1}, {"num_cpus": 1})):
        ports = {"dashboard_agent_listen_port": AGENT + number, "metrics_export_port": METRICS + number}
        cluster.add_node(
            **settings, **ports, _system_config={"metrics_report_interval_ms": 500} if not number else None
        )
    print(json.dumps({"url": f"http://{cluster.head_node.webui_url}", "address": cluster.address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
