"""Whether an output that exists already is the one that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from latentwire_batch.config import CollectSettings
from latentwire_batch.dataset.manifest import settings_of
from latentwire_batch.dispatch.session import served_model
from latentwire_batch.errors import UsageError
from latentwire_batch.output.layout import OutputLayout, read_json
from latentwire_batch.run_settings import differences, request_settings
from latentwire_batch.tasks.rows import DataIdentity


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
