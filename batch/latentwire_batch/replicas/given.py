"""Replicas that run already, at addresses that the user gave."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from latentwire import AsyncClient
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.replicas.endpoints import discover, parse_address, resolve_endpoints
from latentwire_batch.replicas.source import AddAddress, new_client


class GivenReplicas:
    """A `ReplicaSource` over addresses. A name with several addresses stands for all of them.

    Args:
        addresses: of the replicas.
        api_key: sent to each of them; None for no key.
        timeout_s: longest wait for one row, in seconds.
        patience_s: longest wait while no replica is ready, in seconds.
        max_retries: of the clients.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        api_key: SecretStr | None,
        timeout_s: float,
        patience_s: float,
        max_retries: int = 0,
    ) -> None:
        self.patience_s = patience_s
        self._addresses = addresses
        self._api_key = None if api_key is None else api_key.get_secret_value()
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._started: list[str] = []
        self._pool = BufferPool()

    async def start(self) -> list[str]:
        """Resolve the addresses; raises UsageError for one that is no HTTP URL."""
        self._started = await resolve_endpoints(self._addresses)
        return self._started

    def connect(self, url: str) -> AsyncClient:
        """Make the client of one replica; the caller closes it.

        An address that a name was resolved to is reached directly: `resolve_endpoints` resolves no
        name for which NO_PROXY does not say so.
        """
        is_given = url in {str(parse_address(address)) for address in self._addresses}
        return new_client(
            url,
            self._timeout_s,
            self._api_key,
            uses_proxy=is_given,
            max_retries=self._max_retries,
            pool=self._pool,
        )

    def note_ready(self) -> None:
        """Do nothing: this run did not start these replicas."""

    def note_progress(self) -> None:
        """Do nothing: this run did not start these replicas."""

    async def watch(self, add: AddAddress) -> None:
        """Report addresses that the names gain; runs until cancelled."""
        await discover(self._addresses, self._started, add)

    async def stop(self, at_once: bool) -> None:
        """Do nothing: the replicas outlive the run."""
