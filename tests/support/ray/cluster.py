"""A Ray cluster on the loopback interface: prints its address, and ends with its standard input.

`python -m support.ray.cluster NUM_CPUS [PORT FLAG...]`: with a port, Ray Serve answers there with
the service.
"""

from __future__ import annotations

import sys

import ray

_OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    num_cpus, *serving = sys.argv[1:]
    ray.init(
        num_cpus=int(num_cpus),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        if serving:
            serve_model(int(serving[0]), serving[1:])
        sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        ray.shutdown()


def serve_model(port: int, flags: list[str]) -> None:
    from latentwire_service.ray.serve import ServeArgs, app
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(ServeArgs(flags=flags)))


if __name__ == "__main__":
    main()
