"""Replicas of our own: one child process per visible GPU, or one on the CPU, on loopback ports."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import BatchError, ReplicasLostError, UsageError
from latentwire_batch.ranks.rank import ALONE, Rank

_HOST = "127.0.0.1"
_KEPT_STDERR_LINES = 12
_ERROR_LEVELS = frozenset({"ERROR", "CRITICAL"})
_STOP_PATIENCE_S = 15.0
_MAX_RESTARTS = 8
_RESTART_PAUSE_S = 1.0
_USAGE_STATUS = 2
_NOT_FOR_CHILDREN = (
    # A child on the loopback interface is asked without a key.
    *("LATENTWIRE_API_KEY", "LATENTWIRE_API_KEY_FILE"),
    # Of the launcher of several processes: a child is none of them. It is told its threads.
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
)


@dataclass(frozen=True)
class LocalReplicaSpec:
    """How one child is started.

    Attributes:
        index: its position, also in notices.
        port: on the loopback interface.
        gpu: value for CUDA_VISIBLE_DEVICES; None: the environment stays as it is.
        command: module to run and its arguments, host and port among them.
    """

    index: int
    port: int
    gpu: str | None
    command: tuple[str, ...]

    @property
    def base_url(self) -> str:
        """Where it answers."""
        return f"http://{_HOST}:{self.port}"


def plan_local_replicas(
    settings: CollectSettings, environ: Mapping[str, str], rank: Rank = ALONE
) -> list[LocalReplicaSpec]:
    """Decide which children to start.

    Args:
        settings: of the run.
        environ: of this process.
        rank: one of several gets one GPU, or its share of the CPU's threads.

    Raises:
        UsageError: when there are fewer GPUs than processes on this machine.
    """
    wants_gpus = settings.device in (None, "auto", "cuda")
    gpus: list[str | None] = list(visible_gpus(environ)) if wants_gpus else []
    if rank.count > 1 and gpus:
        if len(gpus) < rank.local_count:
            raise UsageError(f"{rank.local_count} processes share this machine's {len(gpus)} GPUs")
        gpus = [gpus[rank.local_index]]
    elif rank.count > 1 and settings.threads is None:
        num_threads = max(1, _num_cores() // rank.local_count)
        settings = settings.model_copy(update={"threads": num_threads})
    ports = _free_ports(len(gpus) or 1)
    return [
        LocalReplicaSpec(index, port, gpu, serve_command(settings, port))
        for index, (port, gpu) in enumerate(zip(ports, gpus or [None], strict=True))
    ]


def serve_command(settings: CollectSettings, port: int) -> tuple[str, ...]:
    """Give the module and arguments that serve the model; what was not asked for is left out."""
    values = {
        "--model": settings.model,
        "--device": settings.device,
        "--dtype": settings.dtype,
        "--threads": settings.threads,
        "--max-slots": settings.max_slots,
        "--max-model-len": settings.max_model_len,
    }
    given = [(flag, str(value)) for flag, value in values.items() if value is not None]
    flags = [part for pair in given for part in pair]
    if settings.trust_remote_code:
        flags.append("--trust-remote-code")
    return ("latentwire", "serve", "--host", _HOST, "--port", str(port), *flags)


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """List the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them.

    Asks the environment, else the driver's own tool: importing torch for it would take seconds and
    a CUDA context in a process that needs neither.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA itself stops at the first name that is not a device.
        end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    answer = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    gpus = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(gpus))]


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalReplicas:
    """The children of one run. A child that ends while it was up is started again.

    Args:
        specs: one per child.
        notify: told about children that end.
    """

    def __init__(self, specs: list[LocalReplicaSpec], notify: Notify) -> None:
        self._notify = notify
        self._children = [_Child(spec) for spec in specs]
        self._is_stopping = False

    async def watch(self) -> None:
        """Start the children and keep them running, until cancelled.

        Raises:
            BatchError: when a child ends too often, or cannot be started at all.
        """
        await asyncio.gather(*(self._keep_running(child) for child in self._children))

    async def stop(self, at_once: bool) -> None:
        """End all children: in good order, or by force where that takes too long.

        Args:
            at_once: use force right away.
        """
        self._is_stopping = True
        patience_s = 0.0 if at_once else _STOP_PATIENCE_S
        await asyncio.gather(*(child.stop(patience_s) for child in self._children))

    def note_ready(self) -> None:
        """Say that the children came up; from now on one that ends is started again."""
        for child in self._children:
            child.was_ready = True

    async def _keep_running(self, child: _Child) -> None:
        for _ in range(_MAX_RESTARTS):
            status = await child.run()
            if self._is_stopping:
                return
            if not child.was_ready:
                raise _start_failure(child, status)
            self._notify(f"own replica {child.spec.index} ended with status {status}; restarting")
            await asyncio.sleep(_RESTART_PAUSE_S)
        raise ReplicasLostError(f"own replica {child.spec.index} ended {_MAX_RESTARTS} times")


class _Child:
    """One child process, and what it said last: errors it logged, and anything."""

    def __init__(self, spec: LocalReplicaSpec) -> None:
        self.spec = spec
        self.was_ready = False
        self.last_errors: deque[str] = deque(maxlen=_KEPT_STDERR_LINES)
        self.last_lines: deque[str] = deque(maxlen=_KEPT_STDERR_LINES)
        self._process: Process | None = None

    async def run(self) -> int:
        """Start the process and return its exit status when it ends."""
        environ = dict(os.environ)
        for name in _NOT_FOR_CHILDREN:
            environ.pop(name, None)
        if self.spec.gpu is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self.spec.gpu
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "latentwire_batch.replicas.tethered", *self.spec.command),
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=PIPE,
            env=environ,
            # Out of the terminal's foreground group: Ctrl-C is for the collector, which lets the
            # rows in flight finish first.
            start_new_session=True,
        )
        assert process.stderr is not None
        try:
            # Read to the end: a full pipe would stop the child.
            async for raw in process.stderr:
                line = raw.decode(errors="replace").rstrip()
                self.last_lines.append(line)
                if _is_error(line):
                    self.last_errors.append(line)
            return await process.wait()
        finally:
            # Cancelled before `stop` knew of the process, or in spite of it.
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def stop(self, patience_s: float) -> None:
        """End the process, by force if it has not ended after `patience_s` seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _start_failure(child: _Child, status: int) -> BatchError:
    kind = UsageError if status == _USAGE_STATUS else ReplicasLostError
    # Where it logged no error, as with a traceback, the end of its output has to do.
    said = "\n  ".join(child.last_errors or child.last_lines)
    return kind(f"own replica {child.spec.index} ended with status {status} at start:\n  {said}")


def _is_error(line: str) -> bool:
    """Tell whether a line of the service's log is an error: date, time, level, then the rest."""
    words = line.split(maxsplit=3)
    return len(words) > 2 and words[2] in _ERROR_LEVELS


def _free_ports(count: int) -> list[int]:
    """Find ports that nothing listens on; all are held until all are known, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for candidate in sockets:
            candidate.bind((_HOST, 0))
        return [int(candidate.getsockname()[1]) for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()
