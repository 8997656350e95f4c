"""The Ray cluster: connecting to it, and whether the replicas fit."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from latentwire.interrupts import sigterm_as_before
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.ray.autoscaler import can_add_nodes
from latentwire_batch.replicas.local_plan import gpus_per_replica

INSTALL = '--on ray needs Ray: pip install "latentwire[ray]"'
# Ray Data's own tasks need CPUs, too: with as many as replicas, nothing moves.
SPARE_CPUS = 2
_ADDRESS_VARIABLE = "RAY_ADDRESS"
_LOCAL = "local"
_CLIENT_SCHEME = "ray://"
_LOG_LEVEL_VARIABLE = "RAY_BACKEND_LOG_LEVEL"
# Ray reads them when it is imported or started; those that the user set stay.
_VARIABLES = {
    # Nothing is sent to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas are the work of this machine. Ray gives its workers the niceness 15.
    "RAY_worker_niceness": "0",
    # A call after the end must not start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray Data's own actors cause an error message that concerns no user.
    _LOG_LEVEL_VARIABLE: "fatal",
}
# Ray's own default where its clusters are not supported: a node is 127.0.0.1, and listens there.
# On Linux, it replaces that address by the machine's own, even where it is given.
_LOCAL_VARIABLES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_STDERR = 2
_MAX_STARTS = 3


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

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each replica and each of Ray Data's own tasks takes."""
        each: dict[str, float] = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        return [each] * self.replicas + [{"CPU": 1}] * SPARE_CPUS

    def shortage(self, num_cpus: int, num_gpus: int) -> str | None:
        """Return what a cluster lacks, as the text of an error; None: nothing.

        Args:
            num_cpus: logical CPUs of the cluster.
            num_gpus: of the cluster.
        """
        if self.gpus > num_gpus:
            return (
                f"--gpus-per-replica: a replica needs {_count(self.gpus, 'GPU')}, and the Ray "
                f"cluster has {num_gpus}; --gpus-per-replica 0 uses CPUs"
            )
        wanted_gpus, wanted_cpus = self.replicas * self.gpus, self.replicas * self.cpus + SPARE_CPUS
        most = max(0, num_cpus - SPARE_CPUS) // self.cpus
        if self.gpus:
            most = min(most, num_gpus // self.gpus)
        remedy = f"--replicas {most} fits" if most else "start more nodes"
        if wanted_gpus > num_gpus:
            return (
                f"--replicas: {self.replicas} need {_count(wanted_gpus, 'GPU')}, and the Ray "
                f"cluster has {num_gpus}; {remedy}"
            )
        if wanted_cpus > num_cpus:
            if not most and self.cpus > 1:
                remedy = "give fewer --threads, or start more nodes"
            return (
                f"--replicas: {_count(self.replicas, 'replica')} and Ray Data's {SPARE_CPUS} tasks "
                f"need {wanted_cpus} logical CPUs, and the Ray cluster has {num_cpus}; {remedy}"
            )
        return None


def import_ray(address: str = "") -> ModuleType:
    """Return Ray with the parts that a collection uses.

    Args:
        address: that is to be connected to, if Ray is not yet.

    Raises:
        UsageError: it is not installed.
    """
    for name, value in (_VARIABLES | (_LOCAL_VARIABLES if address == _LOCAL else {})).items():
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
    with attached(settings) as ray:

        def can_grow(placement: Placement) -> bool:
            return can_add_nodes(ray, placement.bundles)

        placement = place(settings, ray.cluster_resources(), can_grow, notify)
        notify(_described(placement, len(ray.nodes())))
        yield placement


def is_local(settings: CollectSettings) -> bool:
    """Whether collect starts Ray on this machine."""
    return _address(settings) == _LOCAL


@contextmanager
def attached(settings: CollectSettings) -> Iterator[ModuleType]:
    """Connect to the cluster, or start one on this machine; give Ray's module.

    Args:
        settings: of the run.

    Raises:
        UsageError: Ray is missing, or there is no such cluster.
        ReplicasLostError: Ray does not start on this machine.
    """
    address = _address(settings)
    ray = import_ray(address)
    if address.startswith(_CLIENT_SCHEME):
        raise UsageError(
            "--ray-address: collect runs on a machine of the cluster, where auto is the address; "
            f"{_CLIENT_SCHEME} addresses are of Ray Client, which cannot move rows"
        )
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray would exit with the signal's number.
    with sigterm_as_before():
        if address == _LOCAL:
            _start(ray, {**options, "num_cpus": _local_cpus(settings), "include_dashboard": False})
        else:
            _connect(ray, address, options)
    try:
        _quiet(ray)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str, options: Mapping[str, Any]) -> None:
    try:
        with _without_notice_of_log_level():
            ray.init(address=address, **options)
    except ConnectionError as error:
        raise UsageError(
            "--ray-address: no Ray cluster answers there, or it does not accept this user's token"
        ) from error


def _start(ray: ModuleType, options: Mapping[str, Any]) -> None:
    """Start Ray on this machine; again when its processes took longer than it waits for them.

    It waits half a minute, which is too short on a busy machine, and raises a plain `Exception`.
    """
    for num_left in reversed(range(_MAX_STARTS)):
        try:
            with _without_notice_of_log_level():
                ray.init(address=_LOCAL, **options)
            return
        except Exception as error:
            ray.shutdown()
            if not num_left:
                raise ReplicasLostError(
                    "Ray does not start on this machine, which may be too busy; "
                    "/tmp/ray/session_latest/logs says more. Rerun the same command to resume"
                ) from error


def place(
    settings: CollectSettings,
    resources: Mapping[str, float],
    can_grow: Callable[[Placement], bool],
    notify: Notify,
) -> Placement:
    """Decide what the replicas take of a cluster.

    Args:
        settings: of the run.
        resources: of the whole cluster, `CPU` and `GPU`.
        can_grow: whether an autoscaler adds nodes until the replicas fit.
        notify: told when replicas wait for such nodes.

    Raises:
        UsageError: they do not fit.
    """
    num_cpus, num_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpus = _gpus(settings)
    replicas = settings.replicas or max(1, num_gpus // gpus if gpus else 1)
    placement = Placement(replicas, settings.threads or 1, gpus)
    shortage = placement.shortage(num_cpus, num_gpus)
    if shortage is None:
        return placement
    if not can_grow(placement):
        raise UsageError(shortage)
    wanted = [f"{replicas * placement.cpus + SPARE_CPUS} logical CPUs"]
    wanted += [_count(replicas * gpus, "GPU")] * bool(gpus)
    notify(
        f"the Ray cluster has {num_cpus} logical CPUs and {_count(num_gpus, 'GPU')}: "
        f"{_count(replicas, 'replica')} wait until its autoscaler has added nodes, for "
        f"{' and '.join(wanted)} in all; rows are planned from the first replica on"
    )
    return placement


def _address(settings: CollectSettings) -> str:
    return settings.ray_address or os.environ.get(_ADDRESS_VARIABLE) or _LOCAL


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


@contextmanager
def _without_notice_of_log_level() -> Iterator[None]:
    """Drop the line in which Ray's C++ code says that it reads its log level.

    It writes to the file descriptor, before it has a log. What else is written meanwhile follows.
    """
    try:
        kept = os.dup(_STDERR)
    except OSError:
        # It is closed, so nobody sees the line.
        yield
        return
    try:
        with tempfile.TemporaryFile() as written:
            os.dup2(written.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(kept, _STDERR)
                written.seek(0)
                for line in written:
                    if _LOG_LEVEL_VARIABLE.encode() not in line:
                        os.write(_STDERR, line)
    finally:
        os.close(kept)
