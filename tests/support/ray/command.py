"""The command on a cluster, and a model that all its processes run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.ray.collections import ANSWER
from support.ray.processes import ENVIRONMENT, Cluster

_PATIENCE_S = 240.0
REPLICA = "MapWorker"


class Command:
    """Runs `latentwire collect` on the cluster, in a process that runs it as often as it is told.

    Args:
        cluster: that it connects to.
        report: file for its standard error.
        flags: of all runs.
    """

    def __init__(self, cluster: Cluster, report: Path, flags: Sequence[str]) -> None:
        self._cluster = cluster
        self._report = report
        self._flags = [*flags, "--on", "ray", "--ray-address", cluster.address]
        with report.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.ray.collections"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **ENVIRONMENT},
                encoding="utf-8",
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    @property
    def report(self) -> str:
        """What it has written to the standard error."""
        return self._report.read_text(encoding="utf-8")

    def start(self, *flags: str) -> None:
        """Start a run, once the replicas of earlier ones have ended."""
        self.wait_until(lambda: not self._cluster.actors(REPLICA))
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([*self._flags, *flags]) + "\n")
        self._process.stdin.flush()

    def status(self) -> int:
        """Return the exit status of the run that was started."""
        while (status := self._answer()) is None:
            pass
        return status

    def _answer(self) -> int | None:
        """Read a line; give the exit status, if it has one. Ray writes other lines."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.report
        return int(line.removeprefix(ANSWER)) if line.startswith(ANSWER) else None

    def run(self, *flags: str) -> int:
        self.start(*flags)
        return self.status()

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait for other processes, which give no other sign, while the run goes on."""
        assert self._process.stdout is not None
        ends_s = time.monotonic() + _PATIENCE_S
        while not is_true():
            assert time.monotonic() < ends_s, self.report
            if select.select([self._process.stdout], [], [], 0.05)[0]:
                assert self._answer() is None, self.report

    def kill(self, victim: int, num_logged: Callable[[], int]) -> None:
        """Kill a process on which replicas run, and wait for rows that are durable after that.

        Args:
            victim: its id.
            num_logged: returns how many rows are durable, at least.
        """
        self.wait_until(lambda: num_logged() >= 3)
        os.kill(victim, signal.SIGKILL)
        self.wait_until(lambda: victim not in self._cluster.processes())
        known = num_logged()
        self.wait_until(lambda: num_logged() >= known + 3)
