"""A Ray cluster on the loopback interface: prints its address, and ends with its standard input.

`python -m support.ray.cluster NUM_CPUS[,NUM_CPUS...]`: one node for each number.

Each line of the standard input is a configuration of Ray Serve in JSON, to which the cluster
changes; an empty line on the standard output answers.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

_NODE = {
    "include_dashboard": False,
    "object_store_memory": 100 << 20,
    "node_ip_address": "127.0.0.1",
}


def main() -> None:
    num_cpus = [int(number) for number in sys.argv[1].split(",")]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus[0], **_NODE})
    try:
        for number in num_cpus[1:]:
            cluster.add_node(num_cpus=number, **_NODE)
        answer(cluster.address)
        for line in sys.stdin:
            if not ray.is_initialized():
                ray.init(cluster.address, log_to_driver=False)
            deploy(json.loads(line))
            answer("")
    finally:
        ray.shutdown()
        cluster.shutdown()


def answer(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def deploy(config: dict[str, Any]) -> None:
    """Begin to change to a configuration, as the command `serve deploy` does."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    serve.start(http_options=schema.http_options.model_dump(include={"host", "port"}))
    _get_global_client().deploy_apps(schema)


if __name__ == "__main__":
    main()
