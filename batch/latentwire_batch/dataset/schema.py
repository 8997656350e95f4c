"""The dataset's columns, stated once, and record batches in their schema built from flat buffers.

The Arrow schema, the Hugging Face features, the dataset card and the reader follow `COLUMNS` and
`EXTRA_COLUMNS`.

No latent ever becomes a Python list: a batch's floats lie in one buffer, which sources fill in
place, and two arrays of offsets cut it into hidden rows and dataset rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
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
# Added by choice, in this order.
EXTRA_COLUMNS = (
    Column("token_ids", pa.list_(pa.int32()), "the generated tokens; token t follows hidden row t"),
    Column("finish_reason", pa.string(), "`stop`, or `length` where a limit cut the plan"),
    Column("seed", pa.int64(), "the seed of the row; with it, a request repeats the plan"),
    Column("prompt_tokens", pa.int32(), "the length of the prompt"),
    Column("completion_tokens", pa.int32(), "the number of generated tokens"),
)
# Key of the JSON object in the files' metadata that says how they were made.
DECLARATION_KEY = b"latentwire"


@dataclass(frozen=True)
class DatasetSchema:
    """The columns of one dataset, and its declaration.

    Attributes:
        extras: names of the added columns, of `EXTRA_COLUMNS`.
        declaration: JSON text for the files' metadata; None for none.
    """

    extras: tuple[str, ...] = ()
    declaration: str | None = None

    @property
    def extra_columns(self) -> tuple[Column, ...]:
        """The added columns."""
        return tuple(column for column in EXTRA_COLUMNS if column.name in self.extras)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns in order."""
        return COLUMNS + self.extra_columns

    @property
    def arrow(self) -> pa.Schema:
        """The schema of the files, with the declaration as metadata."""
        schema = pa.schema([pa.field(column.name, column.type) for column in self.columns])
        if self.declaration is None:
            return schema
        return schema.with_metadata({DECLARATION_KEY: self.declaration.encode()})


CLASSIC_SCHEMA = DatasetSchema()
SCHEMA = CLASSIC_SCHEMA.arrow

# Offsets of a list array are signed 32-bit: no batch may hold more floats than they can count.
MAX_BATCH_FLOATS = 2**31 - 1
# One batch is one row group and is held in memory about three times while it is encoded. 32 MiB
# leaves the per-batch cost unnoticeable and keeps reading one row from a file cheap.
DEFAULT_BATCH_BYTES = 32 << 20
_FLOAT_BYTES = 4
_VALUE_NAMES = {
    pa.string(): "string",
    pa.float32(): "float32",
    pa.int32(): "int32",
    pa.int64(): "int64",
}


class BatchBuilder:
    """Collects dataset rows into record batches of bounded size.

    Args:
        width: the model's hidden size, the length of every hidden row.
        max_bytes: size of floats and texts at which a batch is full. A single larger row makes a
            batch of its own.
        schema: of the dataset.
    """

    def __init__(
        self,
        width: int,
        max_bytes: int = DEFAULT_BATCH_BYTES,
        schema: DatasetSchema = CLASSIC_SCHEMA,
    ) -> None:
        self._width = width
        self._schema = schema.arrow
        self._extra_columns = schema.extra_columns
        self._extras: list[Mapping[str, Any]] = []
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

    def add(
        self, text: RowText, num_hidden_rows: int, extras: Mapping[str, Any] = MappingProxyType({})
    ) -> npt.NDArray[np.float32]:
        """Add a row; the caller fills in its floats.

        Args:
            text: the row's text columns.
            num_hidden_rows: rows of its latent.
            extras: its values in the added columns, by name.

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
        self._extras.append(extras)
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
        extras = [
            pa.array([row[column.name] for row in self._extras], type=column.type)
            for column in self._extra_columns
        ]
        batch = pa.RecordBatch.from_arrays([*texts, latents, *extras], schema=self._schema)
        self._texts, self._extras = [], []
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
