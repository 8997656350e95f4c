"""A short look at which model given replicas serve."""

from __future__ import annotations

from latentwire_batch.errors import ReplicasLostError
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.source import ReplicaSource

_PATIENCE_S = 2.0


async def served_model(source: ReplicaSource) -> ModelIdentity | None:
    """Return the model that the replicas serve; None when none of them answers within 2 s.

    Raises:
        UsageError: see `Fleet.connect`.
    """
    clients = {url: source.connect(url) for url in await source.start()}
    fleet = Fleet(clients, concurrency=None, notify=lambda _: None)
    try:
        return await fleet.connect(_PATIENCE_S)
    except ReplicasLostError:
        return None
    finally:
        await fleet.aclose()
