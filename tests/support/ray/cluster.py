"""A Ray cluster on this machine: prints its address, and ends with its standard input.

Ray listens on the machine's own address, whatever address it is given.

`python -m support.ray.cluster NUM_CPUS[,NUM_CPUS...]`: one node for each number.

Each line of the standard input is a configuration of Ray Serve in JSON, to which the cluster
changes; an empty line on the standard output answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

# Written by `ray start`.
_CURRENT_CLUSTER = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
_OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    num_cpus, *others = (int(number) for number in sys.argv[1].split(","))
    start_head(num_cpus)
    nodes: list[subprocess.Popen[bytes]] = []
    address = ray.get_runtime_context().gcs_address
    try:
        nodes += [add_node(address, number) for number in others]
        untyped: Any = ray
        while len(untyped.nodes()) <= len(others):
            time.sleep(0.1)
        forget(address)
        answer(address)
        for line in sys.stdin:
            deploy(json.loads(line))
            answer("")
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait()
        forget(address)
        ray.shutdown()


def start_head(num_cpus: int) -> None:
    """Start the first node; again when its processes took longer than Ray waits for them."""
    for is_last in (False, False, True):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception:
            if is_last:
                raise
            ray.shutdown()


def add_node(address: str, num_cpus: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--address", address, "--num-cpus", str(num_cpus), "--node-ip-address", "127.0.0.1"),
            *("--object-store-memory", str(_OBJECT_STORE_BYTES)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def forget(address: str) -> None:
    """Remove the note of `ray start`, by which other programs would take this cluster for theirs.

    A node may write it before or after it has joined.
    """
    with suppress(FileNotFoundError):
        if _CURRENT_CLUSTER.read_text(encoding="utf-8") == address:
            _CURRENT_CLUSTER.unlink()


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
    client: Any = _get_global_client()
    client.deploy_apps(schema)


if __name__ == "__main__":
    main()
