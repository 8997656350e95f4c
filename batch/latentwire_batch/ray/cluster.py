"""The Ray cluster: connecting to it, and whether the replicas fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import UsageError
from latentwire_batch.replicas.local_plan import gpus_per_replica

INSTALL = '--on ray needs Ray: pip install "latentwire[ray]"'
# Ray Data's own tasks need CPUs, too: with as many as replicas, nothing moves.
SPARE_CPUS = 2
_ADDRESS_VARIABLE = "RAY_ADDRESS"
_CLIENT_SCHEME = "ray://"
# Ray reads them when it is imported or started; those that the user set stay.
_VARIABLES = {
    # Nothing is sent to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas are the work of this machine. Ray gives its workers the niceness 15.
    "RAY_worker_niceness": "0",
    # A call after the end must not start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray Data's own actors cause an error message that concerns no user.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class Placement:
    """What the replicas take of the cluster.

    Attributes:
        replicas: how many.
        cpus: logical CPUs of each.
        gpus: of each.
    """

    replicas: int
    cpus: int
    gpus: int


def import_ray() -> ModuleType:
    """Return Ray with the parts that a collection uses.

    Raises:
        UsageError: it is not installed.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UsageError(INSTALL) from error
    return ray


@contextmanager
def connected(settings: CollectSettings, notify: Notify) -> Iterator[Placement]:
    """Connect to the cluster, or start one on this machine, and place the replicas.

    Args:
        settings: of the run.
        notify: receives what is placed.

    Raises:
        UsageError: Ray is missing, there is no such cluster, or it is too small.
    """
    ray = import_ray()
    address = settings.ray_address or os.environ.get(_ADDRESS_VARIABLE) or "local"
    if address.startswith(_CLIENT_SCHEME):
        raise UsageError(
            "--ray-address: collect runs on a machine of the cluster, where auto is the address; "
            f"{_CLIENT_SCHEME} addresses are of Ray Client, which cannot move rows"
        )
    options = {"num_cpus": _local_cpus(settings), "include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(options if address == "local" else {}),
        )
    except ConnectionError as error:
        raise UsageError(
            "--ray-address: no Ray cluster answers there, or it does not accept this user's token"
        ) from error
    try:
        _quiet(ray)
        placement = place(settings, ray.cluster_resources())
        notify(_described(placement, len(ray.nodes())))
        yield placement
    finally:
        ray.shutdown()


def place(settings: CollectSettings, resources: Mapping[str, float]) -> Placement:
    """Decide what the replicas take of a cluster.

    Args:
        settings: of the run.
        resources: of the whole cluster, `CPU` and `GPU`.

    Raises:
        UsageError: they do not fit.
    """
    num_cpus, num_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpus = _gpus(settings)
    cpus = settings.threads or 1
    if gpus > num_gpus:
        raise UsageError(
            f"--gpus-per-replica: a replica needs {_count(gpus, 'GPU')}, and the Ray cluster has "
            f"{num_gpus}; --gpus-per-replica 0 uses CPUs"
        )
    replicas = settings.replicas or (num_gpus // gpus if gpus else 1)
    if replicas * gpus > num_gpus:
        raise UsageError(
            f"--replicas: {replicas} need {_count(replicas * gpus, 'GPU')}, and the Ray cluster "
            f"has {num_gpus}; give fewer, or start more nodes"
        )
    if replicas * cpus + SPARE_CPUS > num_cpus:
        raise UsageError(
            f"--replicas: {_count(replicas, 'replica')} and Ray Data need "
            f"{replicas * cpus + SPARE_CPUS} logical CPUs, and the Ray cluster has {num_cpus}; "
            "give fewer replicas or --threads, or start more nodes"
        )
    return Placement(replicas, cpus, gpus)


def _gpus(settings: CollectSettings) -> int:
    if settings.gpus_per_replica is not None:
        return settings.gpus_per_replica
    return 0 if settings.device in ("cpu", "mps") else gpus_per_replica(settings)


def _local_cpus(settings: CollectSettings) -> int:
    """Return the logical CPUs of a cluster that is this machine: Ray need not know how many it has.

    Without a number of replicas, there is one for each GPU.
    """
    replicas = settings.replicas or 16
    return max(os.cpu_count() or 1, replicas * (settings.threads or 1) + SPARE_CPUS + 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _described(placement: Placement, num_nodes: int) -> str:
    each = _count(placement.gpus, "GPU") if placement.gpus else _count(placement.cpus, "CPU")
    return (
        f"starting {_count(placement.replicas, 'replica')} of the model on a Ray cluster of "
        f"{_count(num_nodes, 'node')}, each with {each}"
    )


def _quiet(ray: ModuleType) -> None:
    """Leave the terminal to the collection's own progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A model may load for hours, and a row may take as long as --timeout.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
