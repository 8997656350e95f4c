"""The rows of a finished output, read in order, to be merged with rows asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire_batch.dataset.manifest import Manifest
from latentwire_batch.errors import StorageError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.tasks.results import RowText


@dataclass(frozen=True, eq=False)
class PreviousRow:
    """One row of a finished output.

    Attributes:
        text: its text columns.
        latent: `[num_steps, hidden_size]` float32, a view of the memory-mapped file.
    """

    text: RowText
    latent: npt.NDArray[np.float32]


def finished_indices(manifest: Manifest, layout: OutputLayout) -> npt.NDArray[np.bool_]:
    """Tell which input rows a finished output holds.

    Returns:
        `[num_rows]` bool, False for the rows that failed.

    Raises:
        StorageError: when the list of failures cannot be read.
    """
    finished = np.ones(manifest.settings.data.num_rows, dtype=np.bool_)
    if not manifest.counts.failed:
        return finished
    try:
        with layout.failures.open() as file:
            for line in file:
                finished[json.loads(line)["row"]] = False
    except (OSError, ValueError, LookupError) as error:
        raise StorageError("the output's failures.jsonl cannot be read") from error
    return finished


def previous_rows(layout: OutputLayout, width: int) -> Iterator[PreviousRow]:
    """Yield the rows of a finished output in order.

    Args:
        layout: of the output.
        width: hidden size.

    Raises:
        StorageError: when its files cannot be read.
    """
    try:
        state = json.loads((layout.hf_dataset / "state.json").read_text())
        for shard in state["_data_files"]:
            path = layout.hf_dataset / shard["filename"]
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield from _batch_rows(batch, width)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise StorageError("the output's hf_dataset cannot be read") from error


def _batch_rows(batch: pa.RecordBatch, width: int) -> Iterator[PreviousRow]:
    latents = batch.column("hidden_state")
    offsets = latents.offsets.to_numpy()
    # `.values` twice: the flat floats of the whole batch, as they lie in the file.
    floats = latents.values.values.to_numpy(zero_copy_only=True)
    for position in range(batch.num_rows):
        text = RowText(
            task=batch.column("task")[position].as_py(),
            task_id=batch.column("task_id")[position].as_py(),
            plan=batch.column("plan")[position].as_py(),
        )
        first, last = int(offsets[position]) * width, int(offsets[position + 1]) * width
        yield PreviousRow(text, floats[first:last].reshape(-1, width))
