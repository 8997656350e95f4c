"""Own replicas: child processes of this run, on loopback ports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from latentwire import AsyncClient
from latentwire_batch.console import Notify
from latentwire_batch.errors import BatchError, ReplicasLostError, UsageError
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.replicas.child_process import ChildProcess
from latentwire_batch.replicas.health_watch import HANG_PATIENCE_S, until_hung
from latentwire_batch.replicas.local_plan import LocalReplicaSpec
from latentwire_batch.replicas.source import AddAddress, new_client

# Loading a large model may take hours. A child that ends is noticed at once.
_PATIENCE_S = 86_400.0
_STOP_PATIENCE_S = 15.0
# In a row, without any progress of the run between them.
_MAX_RESTARTS = 8
_RESTART_PAUSE_S = 1.0
_USAGE_STATUS = 2


class LocalReplicas:
    """A `ReplicaSource` of child processes. One that was ready and ends, or hangs, is restarted.

    Args:
        specs: one per child.
        timeout_s: longest wait for one row, in seconds.
        notify: receives notices about children that end.
        max_retries: of the clients.
    """

    patience_s = _PATIENCE_S

    def __init__(
        self,
        specs: Sequence[LocalReplicaSpec],
        timeout_s: float,
        notify: Notify,
        max_retries: int = 0,
    ) -> None:
        self._specs = specs
        self._children: list[ChildProcess] = []
        self._timeout_s = timeout_s
        self._notify = notify
        self._max_retries = max_retries
        self._supervisors: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._num_progress = 0
        self._pool = BufferPool()

    async def start(self) -> list[str]:
        """Start the children; `watch` reports those that cannot start."""
        self._children = [ChildProcess(spec) for spec in self._specs]
        count = len(self._children)
        self._notify(f"starting {count} replica{'s' * (count > 1)} of the model")
        self._supervisors = [
            asyncio.create_task(self._keep_running(child)) for child in self._children
        ]
        return [child.url for child in self._children]

    def connect(self, url: str) -> AsyncClient:
        """Make the client of one child; own replicas want no key."""
        return new_client(url, self._timeout_s, max_retries=self._max_retries, pool=self._pool)

    def note_ready(self) -> None:
        """From now on, restart a child that ends."""
        for child in self._children:
            child.was_ready = True

    def note_progress(self) -> None:
        """Let children end more often: the rows explain it, or get done all the same."""
        self._num_progress += 1

    async def watch(self, add: AddAddress) -> None:
        """Wait for a child that is lost for good; runs until cancelled.

        Raises:
            BatchError: when a child cannot be started, or ends too often.
        """
        del add  # A restarted child keeps its address, and no children join later.
        await asyncio.gather(*self._supervisors)

    async def stop(self, at_once: bool) -> None:
        """End all children: with SIGTERM, and by force when that takes too long.

        Args:
            at_once: use force right away.
        """
        self._is_stopping = True
        patience_s = 0.0 if at_once else _STOP_PATIENCE_S
        await asyncio.gather(*(child.stop(patience_s) for child in self._children))
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for child in self._children:
            child.close()

    async def _keep_running(self, child: ChildProcess) -> None:
        num_ended = num_progress = 0
        while num_ended < _MAX_RESTARTS:
            status = await self._run(child)
            if self._is_stopping:
                return
            if not child.was_ready:
                raise _start_failure(child, status)
            num_ended = 1 if self._num_progress > num_progress else num_ended + 1
            num_progress = self._num_progress
            self._notify(f"own replica {child.spec.index} exited with status {status}; restarting")
            await asyncio.sleep(_RESTART_PAUSE_S)
        raise ReplicasLostError(
            f"own replica {child.spec.index} exited {_MAX_RESTARTS} times without planning a row; "
            "finished rows are kept, rerun the same command to resume"
        )

    async def _run(self, child: ChildProcess) -> int:
        """Run a child until it ends, by itself or because it hangs; return its exit status."""
        watching = asyncio.create_task(self._kill_when_hung(child))
        try:
            return await child.run()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _kill_when_hung(self, child: ChildProcess) -> None:
        async with self.connect(child.url) as client:
            await until_hung(client.health, HANG_PATIENCE_S)
        self._notify(
            f"own replica {child.spec.index} hangs: it has not been healthy for "
            f"{HANG_PATIENCE_S:g} s; ending it"
        )
        child.kill()


def _start_failure(child: ChildProcess, status: int) -> BatchError:
    kind = UsageError if status == _USAGE_STATUS else ReplicasLostError
    reason = child.output.reason.replace("\n", "\n  ")
    return kind(f"own replica {child.spec.index} failed to start (status {status}):\n  {reason}")
