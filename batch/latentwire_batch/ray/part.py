"""Where one replica keeps the rows that it has settled."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from latentwire_batch.errors import LocationError, UsageError
from latentwire_batch.locations.errors import output_error
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ray.job import Job
from latentwire_batch.ray.ledger import Settled
from latentwire_batch.ray.part_log import PartLog
from latentwire_batch.ray.part_segments import PartSegments
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion

# Tells the ledger of rows that are durable.
Announce = Callable[[list[Settled]], Awaitable[None]]


class Part(Protocol):
    """Keeps rows, and announces them once they are durable. Belongs to one event loop.

    Every method raises StorageError or UsageError when rows cannot be kept.
    """

    async def room(self) -> None:
        """Return when another row may be planned: a slow store holds rows back."""
        ...

    async def finished(self, row: FinishedRow) -> None:
        """Return when the row is durable and announced."""
        ...

    async def failed(self, row: FailedRow) -> None:
        """Return when the failure is durable and announced."""
        ...

    async def suspected(self, index: int, suspicion: Suspicion) -> None:
        """Record what is suspected of a row, before it runs."""
        ...

    def close(self) -> None:
        """Keep no more rows."""
        ...


def open_part(job: Job, process: str, announce: Announce, is_idle: Callable[[], bool]) -> Part:
    """Open what the rows of one process are kept in.

    Args:
        job: of the replicas.
        process: no other process may have the same.
        announce: called with rows that are durable.
        is_idle: whether the replica could plan more rows than it has.
    """
    if job.parts is not None:
        return PartSegments(job.parts, process, announce, is_idle)
    return PartLog(OutputLayout(job.root), process, job.num_rows, announce)


def check_place(job: Job) -> None:
    """Check that this node sees the place of the rows.

    Raises:
        BatchError: naming the node, when it does not.
    """
    node = f"node {socket.gethostname()} of the Ray cluster"
    if job.parts is None:
        if not (OutputLayout(job.root).partial / job.token).exists():
            raise UsageError(
                f"--output-dir: {node} does not see it; give a folder that all nodes share, or "
                "the URL of a store"
            )
        return
    try:
        is_there = job.parts.exists(job.token)
    except LocationError as error:
        raise output_error(f"{node} cannot read {job.parts.shown}", error) from error
    if not is_there:
        raise UsageError(
            f"--output-dir: {node} does not see what this one put into {job.parts.shown}; give "
            "the node the same address of the store"
        )
