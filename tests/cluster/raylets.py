"""A Ray cluster of three nodes on loopback: a program that ends when its standard input does."""

import json
import sys

from ray.cluster_utils import Cluster

AGENT = 52370
"""The first port of the nodes' agents, which would all take the same one"""


def main(port: int) -> None:
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster = Cluster(head_node_args={**head, "dashboard_agent_listen_port": AGENT}, initialize_head=True)
    for number in (1, 2):
        cluster.add_node(num_cpus=1, dashboard_agent_listen_port=AGENT + number)
    print(json.dumps({"url": f"http://{cluster.head_node.webui_url}", "address": cluster.address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
