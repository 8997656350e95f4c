"""Comparison of the wanted collection with the output that exists."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from latentwire_batch.dataset.manifest import Counts, Manifest
from latentwire_batch.errors import UsageError
from latentwire_batch.replicas.probe import served_model
from latentwire_batch.replicas.select import given_replicas
from latentwire_batch.run import Run
from latentwire_batch.run_settings import RunSettings

# Of `latentwire serve`, which own replicas run.
_DEFAULT_ENGINE = "latentwire"


def finished_counts(run: Run) -> Counts | None:
    """Compare with a finished output.

    Returns:
        The counts of the finished output; None when rows are still missing.

    Raises:
        UsageError: when the output was made with other settings, or may not be ours.
        StorageError: when its manifest cannot be read.
    """
    value = run.destination.manifest()
    if value is None:
        if run.destination.has_foreign_files(run.split_names):
            raise UsageError(
                "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
            )
        return None
    manifest, wanted = Manifest.from_json(value), run.wanted_settings(run.settings.seed)
    refuse_differences(manifest.settings, wanted)
    if run.settings.retry_failed and manifest.counts.failed > run.num_unusable:
        return None
    if run.settings.replica:
        # A finished dataset needs no replica, but one that answers must serve the same model.
        model = asyncio.run(served_model(given_replicas(run.settings)))
        if model is not None:
            refuse_differences(manifest.settings, replace(wanted, model=model))
    elif manifest.settings.model is not None:
        # No replica is started only to hear which engine it has.
        model = replace(manifest.settings.model, engine=run.settings.engine or _DEFAULT_ENGINE)
        refuse_differences(manifest.settings, replace(wanted, model=model))
    return manifest.counts


def refuse_differences(stored: RunSettings, wanted: RunSettings) -> None:
    """Raise UsageError, naming the differences, when two runs are not the same collection."""
    found = stored.differences(wanted)
    if found:
        raise UsageError(
            f"--output-dir: was made with other settings: {'; '.join(found)}. "
            "--overwrite starts from scratch; another --output-dir keeps both"
        )
