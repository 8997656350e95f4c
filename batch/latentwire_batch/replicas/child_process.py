"""One child process that serves the model, and the socket that it listens on."""

from __future__ import annotations

import os
import socket
import sys
from asyncio import timeout
from asyncio.subprocess import DEVNULL, PIPE, Process, create_subprocess_exec
from contextlib import suppress

from latentwire_batch.replicas.child_environment import child_environment
from latentwire_batch.replicas.child_output import ChildOutput
from latentwire_batch.replicas.local_plan import LOOPBACK, LocalReplicaSpec


class ChildProcess:
    """A child, started again on the same address when it has ended.

    The socket is bound here, on a port that the system chooses, and the child inherits it. So no
    other process can take the port before the child does, and a restarted child keeps its address.

    Args:
        spec: how the child is started.

    Attributes:
        spec: how the child is started.
        url: where it answers.
        was_ready: whether it has served once.
        output: the end of its standard error.
    """

    def __init__(self, spec: LocalReplicaSpec) -> None:
        self.spec = spec
        self.was_ready = False
        self.output = ChildOutput()
        self._process: Process | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind((LOOPBACK, 0))
        self.url = f"http://{LOOPBACK}:{self._socket.getsockname()[1]}"

    async def run(self) -> int:
        """Start the process and return its exit status when it ends."""
        fd = self._socket.fileno()
        self._process = process = await create_subprocess_exec(
            *(sys.executable, "-m", "latentwire_batch.replicas.tethered", *self.spec.command),
            *("--listen-fd", str(fd)),
            pass_fds=[fd],
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=PIPE,
            env=child_environment(os.environ, self.spec.gpu),
            # Out of the terminal's foreground group: Ctrl-C is for the collector, which first lets
            # the in-flight rows finish.
            start_new_session=True,
        )
        assert process.stderr is not None
        try:
            # Read to the end: a full pipe would stop the child.
            async for raw in process.stderr:
                self.output.add(raw.decode(errors="replace").rstrip())
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
            async with timeout(patience_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def kill(self) -> None:
        """End the process by force; `run` then returns."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def close(self) -> None:
        """Release the port."""
        self._socket.close()
