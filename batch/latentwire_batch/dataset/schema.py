"""The dataset's Arrow schema, and record batches in it built from flat buffers.

No latent ever becomes a Python list: a batch's floats lie in one buffer, which sources fill in
place, and two arrays of offsets cut it into steps and rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire_batch.tasks.results import RowText

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("plan", pa.string()),
        pa.field("hidden_state", pa.list_(pa.list_(pa.float32()))),
    ]
)

# Offsets of a list array are signed 32-bit: no batch may hold more floats than they can count.
MAX_BATCH_FLOATS = 2**31 - 1
# One batch is one row group and is held in memory about three times while it is encoded. 32 MiB
# leaves the per-batch cost unnoticeable and keeps reading one row from a file cheap.
DEFAULT_BATCH_BYTES = 32 << 20
_FLOAT_BYTES = 4


class BatchBuilder:
    """Gathers rows into record batches of a bounded size.

    Args:
        width: the model's hidden size, the length of every step.
        max_bytes: size of a batch's floats and texts at which it is full. A single larger row
            still makes a batch of its own.
    """

    def __init__(self, width: int, max_bytes: int = DEFAULT_BATCH_BYTES) -> None:
        self._width = width
        self._max_bytes = max_bytes
        self._texts: list[RowText] = []
        self._num_text_bytes = 0
        self._row_offsets = [0]
        self._floats = np.empty(max_bytes // _FLOAT_BYTES, dtype=np.float32)

    @property
    def is_empty(self) -> bool:
        """Whether no row was added since the last `finish`."""
        return not self._texts

    def has_room(self, text: RowText, num_steps: int) -> bool:
        """Tell whether a row may be added, or the batch has to be finished first."""
        num_floats = (self._row_offsets[-1] + num_steps) * self._width
        num_bytes = num_floats * _FLOAT_BYTES + self._num_text_bytes + _num_bytes(text)
        return self.is_empty or (num_bytes <= self._max_bytes and num_floats <= MAX_BATCH_FLOATS)

    def add(self, text: RowText, num_steps: int) -> npt.NDArray[np.float32]:
        """Add a row whose floats the caller fills in.

        Args:
            text: the row's text columns.
            num_steps: rows of its latent.

        Returns:
            `[num_steps, width]` float32, C order: where the latent has to be written before
            `finish`.

        Raises:
            ValueError: when one row alone has more floats than a batch may hold.
        """
        first = self._row_offsets[-1] * self._width
        last = first + num_steps * self._width
        if last > MAX_BATCH_FLOATS:
            raise ValueError(f"a row of {num_steps} steps does not fit into an Arrow list")
        if last > self._floats.size:
            # Only a row that is alone in its batch gets here.
            self._floats = np.empty(last, dtype=np.float32)
        self._texts.append(text)
        self._num_text_bytes += _num_bytes(text)
        self._row_offsets.append(self._row_offsets[-1] + num_steps)
        return self._floats[first:last].reshape(num_steps, self._width)

    def finish(self) -> pa.RecordBatch:
        """Give the rows added so far as one batch.

        Its floats are this builder's buffer, not a copy: the batch has to be written out before
        the next `add`.
        """
        num_steps = self._row_offsets[-1]
        values = pa.Array.from_buffers(
            pa.float32(),
            num_steps * self._width,
            [None, pa.py_buffer(self._floats[: num_steps * self._width])],
        )
        step_offsets = np.arange(num_steps + 1, dtype=np.int64) * self._width
        steps = pa.ListArray.from_arrays(pa.array(step_offsets.astype(np.int32)), values)
        latents = pa.ListArray.from_arrays(pa.array(self._row_offsets, type=pa.int32()), steps)
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array([text.task for text in self._texts], type=pa.string()),
                pa.array([text.task_id for text in self._texts], type=pa.string()),
                pa.array([text.plan for text in self._texts], type=pa.string()),
                latents,
            ],
            schema=SCHEMA,
        )
        self._texts = []
        self._num_text_bytes = 0
        self._row_offsets = [0]
        return batch


def _num_bytes(text: RowText) -> int:
    # Characters stand for bytes here: only the order of magnitude matters.
    return len(text.task) + len(text.task_id) + len(text.plan)
