"""Starting a cluster, and finding the processes of its actors."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

_PATIENCE_S = 240.0
TESTS = Path(__file__).parents[2]
_RAY = importlib.util.find_spec("ray")
assert _RAY is not None
assert _RAY.origin is not None
_NODE_MANAGER = Path(_RAY.origin).parent / "core" / "src" / "ray" / "raylet" / "raylet"
# Other programs fill the memory of a machine that runs tests: Ray must not end a test for it.
ENVIRONMENT = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Next to other tests, Ray's own processes start slowly.
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "240",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "240",
    # Ray lowers the priority of its workers, which get no time next to other tests.
    "RAY_worker_niceness": "0",
    # All that connect run on this machine, and a token would be a file in the home directory.
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    # Nodes are 127.0.0.1 and listen there alone, as on macOS, where this is the default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # All workers that Ray would start before there is work for them.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # A lost node answers at once that nothing listens.
    "RAY_health_check_period_ms": "500",
    "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'support' / 'ray' / 'stand_in'}",
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        address: for `--ray-address`.
        process: that all others descend from.
        report: what the process writes about its errors.
    """

    address: str
    process: subprocess.Popen[str]
    report: IO[str]

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Let Ray Serve change to a configuration; returns before it has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(config) + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "\n":
            pytest.fail(f"Ray Serve did not start: {reported(self.report)}")

    def actors(self, name: str) -> list[int]:
        """Return the processes of the actors whose class name starts so."""
        return self.processes(f"ray::{name}".encode())

    def node_managers(self) -> list[int]:
        """Return the processes that hold the nodes, the head's first: without it, a node ends."""
        # Numbers of processes begin again at 1 when the highest is reached.
        return sorted(self.processes(str(_NODE_MANAGER).encode()), key=started)

    def processes(self, start: bytes = b"") -> list[int]:
        """Return its processes whose command starts so."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                # It ended meanwhile.
                continue
            # An ended process that nobody has waited for has no command.
            if command and command.startswith(start) and self._has(int(folder.name)):
                found.append(int(folder.name))
        return sorted(found)

    def _has(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.process.pid:
                return True
            pid = parent(pid)
        return False


def reported(report: IO[str]) -> str:
    """Return what a process that has ended, or is about to, wrote to a file."""
    report.seek(0)
    return report.read()


def parent(pid: int) -> int:
    """Return the process that started another; 0 when that has ended."""
    return _stat(pid, 1)


def started(pid: int) -> int:
    """Return when a process was started, in ticks since the machine was; 0 when it has ended."""
    return _stat(pid, 19)


def _stat(pid: int, position: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    # The name before it, in parentheses, may hold anything.
    return int(stat.rpartition(")")[2].split()[position])


@contextmanager
def running_cluster(*args: str) -> Iterator[Cluster]:
    """Start `support.ray.cluster` with these arguments; end it and all its processes at the end."""
    with (
        tempfile.TemporaryFile("w+") as report,
        subprocess.Popen(
            [sys.executable, "-m", "support.ray.cluster", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=report,
            env={**os.environ, **ENVIRONMENT},
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                pytest.fail(f"Ray did not start: {reported(report)}")
            assert address.startswith("127.0.0.1:"), address
            yield Cluster(address, process, report)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                # Ray's processes end with the one that started them.
                process.kill()


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for other processes, which give no other sign."""
    ends_s = time.monotonic() + _PATIENCE_S
    while not is_true():
        assert time.monotonic() < ends_s
        time.sleep(0.05)
