"""Which source of replicas the settings of a run name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import UsageError
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.replicas.given import GivenReplicas
from latentwire_batch.replicas.local import LocalReplicas
from latentwire_batch.replicas.local_plan import plan_local_replicas
from latentwire_batch.replicas.source import ReplicaSource


def given_replicas(settings: CollectSettings) -> GivenReplicas:
    """Return the replicas at the addresses of `--replica`.

    Raises:
        UsageError: `--api-key-file` cannot be used.
    """
    return GivenReplicas(
        settings.replica,
        read_api_key(settings.api_key, settings.api_key_file),
        settings.timeout,
        settings.replica_timeout,
    )


def read_api_key(api_key: SecretStr | None, path: Path | None) -> SecretStr | None:
    """Return the API key of `--api-key` or of the file of `--api-key-file`; None without both.

    Raises:
        UsageError: both are given, or the file cannot be used.
    """
    if path is None:
        return api_key
    if api_key is not None:
        raise UsageError("--api-key and --api-key-file: give one of them")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(f"--api-key-file cannot be read: {reason}") from error
    # The same file may list the service's keys, one per line.
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UsageError("--api-key-file contains no key")
    return SecretStr(keys[0])


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
    # Rows that do not use the model's own template do not need it to work.
    flags = () if settings.chat_template == "auto" else ("--ignore-chat-template",)
    specs = plan_local_replicas(settings, environ, rank, flags)
    return LocalReplicas(specs, settings.timeout, notify)
