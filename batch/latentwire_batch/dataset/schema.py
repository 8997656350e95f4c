"""The dataset's columns, stated once, and record batches in their schema built from flat buffers.

The Arrow schema, the Hugging Face features, the dataset card and the reader all follow `COLUMNS`.

No latent ever becomes a Python list: a batch's floats lie in one buffer, which sources fill in
place, and two arrays of offsets cut it into hidden rows and dataset rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire_batch.tasks.results import RowText


@dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        name: of the column.
        type: of its values.
        meaning: for the dataset card; `{width}` stands for the hidden size.
    """

    name: str
    type: pa.DataType
    meaning: str

    @property
    def feature(self) -> dict[str, Any]:
        """The column as `datasets` writes it into `dataset_info.json`."""
        return _feature(self.type)


LATENT_COLUMN = "hidden_state"
COLUMNS = (
    Column("task", pa.string(), "the task, in words"),
    Column("task_id", pa.string(), "the task's id in the input, or its index there"),
    Column("plan", pa.string(), "the text that the model generated"),
    Column(
        LATENT_COLUMN, pa.list_(pa.list_(pa.float32())), "the latent: `[rows, {width}]` float32"
    ),
)
TEXT_COLUMNS = tuple(column.name for column in COLUMNS if column.type == pa.string())
SCHEMA = pa.schema([pa.field(column.name, column.type) for column in COLUMNS])

# Offsets of a list array are signed 32-bit: no batch may hold more floats than they can count.
MAX_BATCH_FLOATS = 2**31 - 1
# One batch is one row group and is held in memory about three times while it is encoded. 32 MiB
# leaves the per-batch cost unnoticeable and keeps reading one row from a file cheap.
DEFAULT_BATCH_BYTES = 32 << 20
_FLOAT_BYTES = 4
_VALUE_NAMES = {pa.string(): "string", pa.float32(): "float32"}


class BatchBuilder:
    """Collects dataset rows into record batches of bounded size.

    Args:
        width: the model's hidden size, the length of every hidden row.
        max_bytes: size of floats and texts at which a batch is full. A single larger row makes a
            batch of its own.
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

    def has_room(self, text: RowText, num_hidden_rows: int) -> bool:
        """Whether a row fits; if not, finish the batch first."""
        num_floats = (self._row_offsets[-1] + num_hidden_rows) * self._width
        num_bytes = num_floats * _FLOAT_BYTES + self._num_text_bytes + _num_bytes(text)
        return self.is_empty or (num_bytes <= self._max_bytes and num_floats <= MAX_BATCH_FLOATS)

    def add(self, text: RowText, num_hidden_rows: int) -> npt.NDArray[np.float32]:
        """Add a row; the caller fills in its floats.

        Args:
            text: the row's text columns.
            num_hidden_rows: rows of its latent.

        Returns:
            `[num_hidden_rows, width]` float32, C order: the place for the latent, to be filled
            before `finish`.

        Raises:
            ValueError: when the row has more floats than a batch may hold.
        """
        first = self._row_offsets[-1] * self._width
        last = first + num_hidden_rows * self._width
        if last > MAX_BATCH_FLOATS:
            raise ValueError(f"a latent of {num_hidden_rows} rows does not fit into an Arrow list")
        if last > self._floats.size:
            # Only a row that is alone in its batch comes here.
            self._floats = np.empty(last, dtype=np.float32)
        self._texts.append(text)
        self._num_text_bytes += _num_bytes(text)
        self._row_offsets.append(self._row_offsets[-1] + num_hidden_rows)
        return self._floats[first:last].reshape(num_hidden_rows, self._width)

    def finish(self) -> pa.RecordBatch:
        """Return the rows added so far as one batch.

        Its floats are this builder's buffer, not a copy: write the batch before the next `add`.
        """
        num_hidden_rows = self._row_offsets[-1]
        num_floats = num_hidden_rows * self._width
        values = pa.Array.from_buffers(
            pa.float32(), num_floats, [None, pa.py_buffer(self._floats[:num_floats])]
        )
        offsets = np.arange(num_hidden_rows + 1, dtype=np.int64) * self._width
        hidden_rows = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
        latents = pa.ListArray.from_arrays(
            pa.array(self._row_offsets, type=pa.int32()), hidden_rows
        )
        texts = [
            pa.array([getattr(text, name) for text in self._texts], type=pa.string())
            for name in TEXT_COLUMNS
        ]
        batch = pa.RecordBatch.from_arrays([*texts, latents], schema=SCHEMA)
        self._texts = []
        self._num_text_bytes = 0
        self._row_offsets = [0]
        return batch


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        # "Sequence", not the newer "List", because every version of `datasets` reads it.
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": _VALUE_NAMES[kind], "_type": "Value"}


def _num_bytes(text: RowText) -> int:
    # Characters stand for bytes here: only the order of magnitude matters.
    return len(text.task) + len(text.task_id) + len(text.plan)
