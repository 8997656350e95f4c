"""A Ray cluster on this machine: prints its address, and ends with its standard input.

`python -m support.ray.cluster NUM_CPUS[,NUM_CPUS...]`: one node for each number.

Each line of the standard input is a configuration of Ray Serve in JSON, to which the cluster
changes; an empty line on the standard output answers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

# Written for other programs of this machine.
_CURRENT_CLUSTER = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
_OBJECT_STORE_BYTES = 100 << 20
_PATIENCE_S = 240


def main() -> None:
    cluster = started([int(number) for number in sys.argv[1].split(",")])
    try:
        forget(cluster.address)
        answer(cluster.address)
        for line in sys.stdin:
            deploy(cluster.address, json.loads(line))
            answer("")
    finally:
        ray.shutdown()
        cluster.shutdown()


def started(num_cpus: Sequence[int]) -> Any:
    """Start all nodes; again when their processes took longer than Ray waits for them.

    A node ends when one of its own processes has not said its port after 15 s, which no setting
    changes. On a busy machine, some of the starts are in time.
    """
    for is_last in (False, False, False, False, True):
        cluster: Any = Cluster()
        cluster._wait_for_node = partial(cluster._wait_for_node, timeout=_PATIENCE_S)
        try:
            for number in num_cpus:
                cluster.add_node(include_dashboard=False, **node(number))
        except Exception:
            cluster.shutdown()
            if is_last:
                raise
        else:
            break
    return cluster


def node(num_cpus: int) -> dict[str, Any]:
    """Return what a node has; nobody reads Ray's logs, and no autoscaler adds nodes."""
    return {
        "num_cpus": num_cpus,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_log_monitor": False,
        "no_monitor": True,
    }


def forget(address: str) -> None:
    """Remove the note by which other programs would take this cluster for theirs."""
    with suppress(FileNotFoundError):
        if _CURRENT_CLUSTER.read_text(encoding="utf-8") == address:
            _CURRENT_CLUSTER.unlink()


def answer(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def deploy(address: str, config: dict[str, Any]) -> None:
    """Begin to change to a configuration, as the command `serve deploy` does."""
    from ray import serve
    from ray.serve._private import api
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    # Its own minute is too short for a proxy that starts next to other tests.
    vars(api)["HTTP_PROXY_TIMEOUT"] = _PATIENCE_S
    schema = ServeDeploySchema.model_validate(config)
    serve.start(http_options=schema.http_options.model_dump(include={"host", "port"}))
    client: Any = _get_global_client()
    client.deploy_apps(schema)


if __name__ == "__main__":
    main()
