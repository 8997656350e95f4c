"""Starting a cluster, and finding the processes of its actors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[2]
# Other programs fill the memory of a machine that runs tests: Ray must not end a test for it.
ENVIRONMENT = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray lowers the priority of its workers, which get no time next to other tests.
    "RAY_worker_niceness": "0",
    # All that connect run on this machine, and a token would be a file in the home directory.
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(TESTS),
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        address: for `--ray-address`.
        pid: of the process that all others descend from.
    """

    address: str
    pid: int

    def actors(self, name: str) -> list[int]:
        """Return the processes of the actors whose class name starts so."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                # It ended meanwhile.
                continue
            if command.startswith(f"ray::{name}".encode()) and self._has(int(folder.name)):
                found.append(int(folder.name))
        return sorted(found)

    def _has(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.pid:
                return True
            try:
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            except OSError:
                return False
            # The name before it, in parentheses, may hold anything.
            pid = int(stat.rpartition(")")[2].split()[1])
        return False


@contextmanager
def running_cluster(*args: str) -> Iterator[Cluster]:
    """Start `support.ray.cluster` with these arguments; end it and all its processes at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.ray.cluster", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            address = process.stdout.readline().strip()
            assert address, "Ray did not start"
            yield Cluster(address, process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                # Ray's processes end with the one that started them.
                process.kill()
