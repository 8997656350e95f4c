"""Where the replicas of a run come from. A session knows only this protocol.

Today replicas run at given addresses or as child processes; a cluster's scheduler can be another
source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from latentwire import AsyncClient, InvalidArgumentError
from latentwire_batch.errors import UsageError
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.client import ReceivingClient

# Called with the address of a replica that appeared during the run.
AddAddress = Callable[[str], None]


class ReplicaSource(Protocol):
    """Starts replicas, or finds them, and watches them during one session."""

    @property
    def patience_s(self) -> float:
        """Longest wait while no replica is ready, in seconds."""
        ...

    async def start(self) -> list[str]:
        """Return the base URLs of the replicas that are known now; they need not be ready.

        Raises:
            UsageError: when the replicas cannot be found or started as configured.
        """
        ...

    def connect(self, url: str) -> AsyncClient:
        """Make the client of one replica; the caller closes it."""
        ...

    def note_ready(self) -> None:
        """Take notice that the first replicas came up."""
        ...

    def note_progress(self) -> None:
        """Take notice that a row was settled, or that a replica ended for a reason in the rows."""
        ...

    async def watch(self, add: AddAddress) -> None:
        """Report replicas that appear later; runs until cancelled.

        Raises:
            BatchError: when the source can provide no replicas any more.
        """
        ...

    async def stop(self, at_once: bool) -> None:
        """Release what `start` took; allowed after a `start` that failed.

        Args:
            at_once: leave replicas no time to finish.
        """
        ...


def new_client(
    url: str,
    timeout_s: float,
    api_key: str | None = None,
    uses_proxy: bool = True,
    max_retries: int = 0,
    pool: BufferPool | None = None,
) -> AsyncClient:
    """Make a client. By default, it sends each row once: the dispatcher retries, perhaps elsewhere.

    Args:
        url: of the replica.
        timeout_s: longest wait for one row, in seconds.
        api_key: of the replica; None when it wants none.
        uses_proxy: see `AsyncClient`.
        max_retries: see `AsyncClient`.
        pool: memory for answers; None: of its own.

    Raises:
        UsageError: when the environment holds a proxy or certificates that cannot be used.
    """
    try:
        return ReceivingClient(
            url,
            pool=pool or BufferPool(),
            timeout_s=timeout_s,
            max_retries=max_retries,
            api_key=api_key,
            wire="safetensors",
            uses_proxy=uses_proxy,
        )
    except InvalidArgumentError as error:
        # It names an argument of the client, or a variable.
        raise UsageError(str(error).replace("api_key:", "--api-key:", 1)) from error
