"""The rows of a finished output, read in order, to be merged with rows that were retried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latentwire_batch.dataset.manifest import Manifest
from latentwire_batch.dataset.reader import StoredRow, stored_rows
from latentwire_batch.errors import InputError, StorageError
from latentwire_batch.output.layout import OutputLayout


def finished_indices(manifest: Manifest, layout: OutputLayout) -> npt.NDArray[np.bool_]:
    """Return which input rows a finished output holds.

    Returns:
        `[num_rows]` bool, False for the rows that failed.

    Raises:
        StorageError: when the list of failures cannot be read.
    """
    finished = np.ones(manifest.settings.data.num_rows, dtype=np.bool_)
    if not manifest.counts.failed:
        return finished
    try:
        with layout.failures.open(encoding="utf-8") as file:
            for line in file:
                finished[json.loads(line)["row"]] = False
    except (OSError, ValueError, LookupError) as error:
        raise StorageError("the output's failures.jsonl cannot be read") from error
    return finished


def previous_rows(
    layout: OutputLayout, width: int, extras: Sequence[str] = ()
) -> Iterator[StoredRow]:
    """Yield the rows of a finished output in order, with latents of `width` columns.

    Args:
        layout: of the output.
        width: the model's hidden size; an empty latent is `[0, width]`.
        extras: names of the added columns.

    Raises:
        StorageError: when its files cannot be read, or hold latents of another width.
    """
    try:
        for row in stored_rows(layout.hf_dataset, extras):
            if row.is_ragged or (len(row.latent) and row.latent.shape[1] != width):
                raise StorageError("the output's hf_dataset holds latents of another width")
            yield replace(row, latent=row.latent.reshape(-1, width))
    except InputError as error:
        raise StorageError("the output's hf_dataset cannot be read") from error
