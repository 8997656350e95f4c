"""How a collection ends, and whether an output that is there is the one that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, UsageError
from latentwire_batch.layout import OutputLayout, read_json
from latentwire_batch.manifest import settings_of
from latentwire_batch.rows import DataIdentity
from latentwire_batch.run_settings import differences, request_settings
from latentwire_batch.session import served_model


class ExitStatus(IntEnum):
    """What the command says to the shell."""

    ALL_ROWS = 0
    FAILED = 1
    USAGE = 2
    SOME_ROWS_FAILED = 3
    INTERRUPTED = 130


def status_of(error: BatchError) -> ExitStatus:
    """Tell the exit status for an error."""
    return ExitStatus.USAGE if isinstance(error, UsageError) else ExitStatus.FAILED


def finished_counts(
    settings: CollectSettings,
    data: DataIdentity,
    layout: OutputLayout,
    clock: Callable[[], float],
) -> Mapping[str, Any] | None:
    """Compare with what is there.

    Returns:
        The counts of a finished output that is the wanted one; None when something is left to do.

    Raises:
        UsageError: when what is there was made otherwise, or is not known to be ours.
    """
    manifest = read_json(layout.manifest)
    if manifest is None:
        if layout.has_final_files():
            raise UsageError(
                "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
            )
        return None
    counts: Mapping[str, Any] = manifest["counts"]
    if settings.retry_failed and counts["failed"]:
        return None
    wanted = request_settings(settings, data, settings.seed)
    refuse_differences(settings_of(manifest), wanted)
    if settings.replica:
        # A finished dataset needs no replica; but if one is there, it should be of that model.
        identity = asyncio.run(served_model(settings, clock))
        if identity is not None:
            refuse_differences(settings_of(manifest), {"model": identity.as_json()})
    return counts


def refuse_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UsageError, naming what differs, when two runs are not the same collection."""
    found = differences(stored, wanted)
    if found:
        raise UsageError(
            f"--output-dir: was made with other settings: {'; '.join(found)}. "
            "--overwrite starts afresh"
        )


def report(console: Console, num_finished: int, num_failed: int, verb: str) -> ExitStatus:
    """Say how it ended, and give the status for that."""
    if not num_failed:
        console.say(f"all {num_finished} rows are {verb}")
        return ExitStatus.ALL_ROWS
    console.say(
        f"{num_finished} rows are {verb}, {num_failed} failed (failures.jsonl); "
        "--retry-failed asks for those again"
    )
    return ExitStatus.SOME_ROWS_FAILED
