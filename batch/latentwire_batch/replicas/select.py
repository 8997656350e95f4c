"""Which source of replicas the settings of a run name."""

from __future__ import annotations

from collections.abc import Mapping

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.replicas.given import GivenReplicas
from latentwire_batch.replicas.local import LocalReplicas
from latentwire_batch.replicas.local_plan import plan_local_replicas
from latentwire_batch.replicas.source import ReplicaSource


def given_replicas(settings: CollectSettings) -> GivenReplicas:
    """Return the replicas at the addresses of `--replica`."""
    return GivenReplicas(
        settings.replica, settings.api_key, settings.timeout, settings.replica_timeout
    )


def select_source(
    settings: CollectSettings, environ: Mapping[str, str], rank: Rank, notify: Notify
) -> ReplicaSource:
    """Return the given replicas, or without any, own ones.

    Args:
        settings: of the run.
        environ: of this process.
        rank: of this process; one of several starts a replica for itself only.
        notify: receives notices about own replicas.

    Raises:
        UsageError: when own replicas cannot be started as configured.
    """
    if settings.replica:
        return given_replicas(settings)
    return LocalReplicas(plan_local_replicas(settings, environ, rank), settings.timeout, notify)
