"""The pending rows through Ray Data: small blocks over a pool of `Worker` actors."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from latentwire_batch.config import CollectSettings
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
# All blocks are made before the first row is sent: larger ones keep that under ten seconds.
_MANY_BLOCKS = 8192
_MAX_ROWS_OF_MANY = 256
_BLOCKS_PER_REPLICA = 4
_MAX_BLOCKS_IN_SEGMENTS = 32
_JOIN_PATIENCE_S = 1.0


class Stream:
    """Sends rows to the replicas until all blocks have come back.

    Args:
        rows: reads the rows to send, in order, from the start.
        job: of the replicas.
        ledger: handle of the `Ledger` actor.
        placement: of the replicas.
    """

    def __init__(
        self, rows: Callable[[], Iterator[Row]], job: Job, ledger: Any, placement: Placement
    ) -> None:
        self._rows = rows
        self._job = job
        self._ledger = ledger
        self._placement = placement
        self._num_slots = _slots(job.settings)
        self._block_rows = block_rows(job.num_rows, placement.replicas * self._num_slots)
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    async def run(self) -> None:
        """Return when all blocks have come back, or after `stop`.

        Raises:
            Exception: any, when Ray Data cannot continue.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def end(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

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
        await done

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

    def _dataset(self) -> Any:
        data = import_ray().data
        blocks = list(_blocks(self._rows(), self._block_rows))
        in_flight = blocks_in_flight(self._num_slots, self._block_rows)
        if self._job.parts is not None:
            # Rows also wait for the others of their segment; each replica keeps its share.
            share = len(blocks) // (_BLOCKS_PER_REPLICA * self._placement.replicas)
            in_flight += min(share, _MAX_BLOCKS_IN_SEGMENTS)
        return data.from_blocks(blocks).map_batches(
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
        num_rows: of the input.
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


def _blocks(rows: Iterator[Row], num_rows: int) -> Iterator[pa.Table]:
    while block := list(islice(rows, num_rows)):
        yield pa.table(
            {
                "index": pa.array([row.index for row in block], pa.int64()),
                "task_id": pa.array([row.task_id for row in block], pa.large_string()),
                "task": pa.array([row.task for row in block], pa.large_string()),
            }
        )


def _actor_id() -> str:
    actor_id: str = import_ray().get_runtime_context().get_actor_id()
    return actor_id
