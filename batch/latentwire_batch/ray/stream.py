"""The pending rows through Ray Data: small blocks over a pool of `Worker` actors.

Ray Data hands out the numbers of the blocks. Their rows come from the driver through the ledger;
it reads them while others are planned, so the input is nowhere in memory as a whole.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import InputError
from latentwire_batch.ray.cluster import Placement, import_ray
from latentwire_batch.ray.job import Job
from latentwire_batch.ray.worker import Worker
from latentwire_batch.tasks.rows import Row

# The most slots that a replica chooses by itself.
_MAX_AUTO_SLOTS = 64
# Rows wait in the replica, so that a slot that gets free is filled at once.
_ROWS_PER_SLOT = 1.5
# Ray's work for one block is some milliseconds. Smaller blocks spread the last rows better.
_MAX_BLOCK_ROWS = 32
# Where there are many rows, larger blocks keep the number of blocks from growing with it.
_MANY_BLOCKS = 8192
_MAX_ROWS_OF_MANY = 256
_BLOCKS_PER_REPLICA = 4
_MAX_BLOCKS_IN_SEGMENTS = 32
_JOIN_PATIENCE_S = 1.0


class Stream:
    """Sends rows to the replicas until all blocks have come back.

    Args:
        rows: to send, in order; read while others are planned.
        num_rows: how many these are.
        job: of the replicas.
        ledger: handle of the `Ledger` actor.
        placement: of the replicas.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        num_rows: int,
        job: Job,
        ledger: Any,
        placement: Placement,
    ) -> None:
        self._rows = rows
        self._num_rows = num_rows
        self._job = job
        self._ledger = ledger
        self._placement = placement
        self._num_slots = _slots(job.settings)
        self._block_rows = block_rows(num_rows, placement.replicas * self._num_slots)
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    async def run(self) -> None:
        """Return when all blocks have come back, or after `stop`.

        Raises:
            InputError: when the input cannot be read, or has changed.
            Exception: any, when Ray Data cannot continue.
        """
        drained = self._start_draining()
        feeding = asyncio.create_task(self._feed())
        try:
            await asyncio.wait([drained, feeding], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                await feeding
            await drained
        finally:
            # The thread may end later, and then nobody looks at what it says.
            drained.cancel()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _feed(self) -> None:
        """Read the rows of one block after the other, as the replicas take them."""
        num_left = self._num_rows
        for number in range(self._num_blocks):
            num_rows = min(num_left, self._block_rows)
            block = await asyncio.to_thread(_read, self._rows, num_rows)
            if len(block) < num_rows:
                raise InputError("--dataset: has fewer rows than when it was first read")
            num_left -= num_rows
            if not await self._ledger.give.remote(number, block):
                return

    def _start_draining(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        drained: asyncio.Future[None] = loop.create_future()

        def end(error: Exception | None) -> None:
            if drained.done():
                return
            if error is None:
                drained.set_result(None)
            else:
                drained.set_exception(error)

        def drain() -> None:
            failure = None
            try:
                self._drain()
            except Exception as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, failure)

        self._thread = threading.Thread(target=drain, name="ray-data", daemon=True)
        self._thread.start()
        return drained

    def close(self) -> None:
        """Take no more blocks, and wait a moment for the thread that takes them.

        It may wait for a block, which never comes once the cluster is left.
        """
        self._is_stopped.set()
        if self._thread is not None:
            self._thread.join(_JOIN_PATIENCE_S)

    def _drain(self) -> None:
        for _ in self._dataset().iter_batches(batch_size=None, prefetch_batches=0):
            if self._is_stopped.is_set():
                return

    @property
    def _num_blocks(self) -> int:
        # Replicas also start where no row is left, because the output names their model.
        return max(1, math.ceil(self._num_rows / self._block_rows))

    def _dataset(self) -> Any:
        data = import_ray().data
        in_flight = blocks_in_flight(self._num_slots, self._block_rows)
        if self._job.parts is not None:
            # Rows also wait for the others of their segment; each replica keeps its share.
            share = self._num_blocks // (_BLOCKS_PER_REPLICA * self._placement.replicas)
            in_flight += min(share, _MAX_BLOCKS_IN_SEGMENTS)
        # Both steps make blocks only as the replicas take them.
        numbers = data.range(self._num_blocks, override_num_blocks=1)
        return numbers.repartition(target_num_rows_per_block=1).map_batches(
            Worker,
            fn_constructor_args=(self._job, self._ledger, _actor_id),
            # A block as it is.
            batch_size=None,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(
                size=self._placement.replicas,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
                enable_true_multi_threading=True,
            ),
            num_cpus=self._placement.cpus,
            num_gpus=self._placement.gpus or None,
        )


def block_rows(num_rows: int, num_slots: int) -> int:
    """Return the rows of a block.

    Args:
        num_rows: to send.
        num_slots: of all replicas.
    """
    share = round(num_rows / (num_slots * _BLOCKS_PER_REPLICA))
    most = min(max(_MAX_BLOCK_ROWS, num_rows // _MANY_BLOCKS), _MAX_ROWS_OF_MANY)
    return min(max(1, share), most)


def blocks_in_flight(num_slots: int, num_rows: int) -> int:
    """Return the blocks that a replica has at a time: while one ends, the others fill the slots.

    Args:
        num_slots: of the replica.
        num_rows: of a block.
    """
    return math.ceil(num_slots * _ROWS_PER_SLOT / num_rows) + 1


def _slots(settings: CollectSettings) -> int:
    if settings.concurrency is not None:
        return settings.concurrency
    return settings.max_slots if isinstance(settings.max_slots, int) else _MAX_AUTO_SLOTS


def _read(rows: Iterator[Row], num_rows: int) -> list[Row]:
    return list(islice(rows, num_rows))


def _actor_id() -> str:
    actor_id: str = import_ray().get_runtime_context().get_actor_id()
    return actor_id
