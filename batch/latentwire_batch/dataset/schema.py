"""The dataset's columns, stated once, and record batches in their schema built from flat buffers.

The Arrow schema, the Hugging Face features, the dataset card and the reader follow `COLUMNS` and
`EXTRA_COLUMNS`.

No latent ever becomes a Python list: a batch's values lie in one buffer, which sources fill in
place, and two arrays of offsets cut it into hidden rows and dataset rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from latentwire.storage import DECLARATION_KEY, MatrixStorage
from latentwire_batch.dataset.matrices import (
    Column,
    MatrixBuffer,
    MatrixColumn,
    Place,
    Shape,
)
from latentwire_batch.tasks.results import RowText

LATENT_COLUMN = "hidden_state"
_TEXTS = (
    Column("task", pa.string(), "the task, in words"),
    Column("task_id", pa.string(), "the task's id in the input, or its index there"),
    Column("plan", pa.string(), "the text that the model generated"),
)
TEXT_COLUMNS = tuple(column.name for column in _TEXTS)


def latent_column(storage: MatrixStorage | None = None) -> MatrixColumn:
    """Return the column `hidden_state`.

    Args:
        storage: of its rows; None: float32.
    """
    return MatrixColumn(LATENT_COLUMN, storage or MatrixStorage(), "the latent: `[rows, {width}]`")


COLUMNS = (*_TEXTS, *latent_column().columns)
# Added by choice, in this order.
EXTRA_COLUMNS = (
    Column("token_ids", pa.list_(pa.int32()), "the generated tokens; token t follows hidden row t"),
    Column("finish_reason", pa.string(), "`stop`, or `length` where a limit cut the plan"),
    Column("seed", pa.int64(), "the seed of the row; with it, a request repeats the plan"),
    Column("prompt_tokens", pa.int32(), "the length of the prompt"),
    Column("completion_tokens", pa.int32(), "the number of generated tokens"),
)


class FileSchema(Protocol):
    """What the files of one dataset hold."""

    @property
    def arrow(self) -> pa.Schema:
        """The schema of the files, with their metadata."""
        ...

    @property
    def columns(self) -> Sequence[Column]:
        """All columns in order."""
        ...

    @property
    def features(self) -> Mapping[str, Any] | None:
        """The columns as `datasets` writes them; None when it is to infer them."""
        ...

    @property
    def matrices(self) -> Sequence[MatrixColumn]:
        """The columns of matrices."""
        ...


@dataclass(frozen=True)
class DatasetSchema:
    """The columns of one dataset, and its declaration.

    Attributes:
        extras: names of the added columns, of `EXTRA_COLUMNS`.
        declaration: JSON text for the files' metadata; None for none.
        matrices: the columns of matrices.
    """

    extras: tuple[str, ...] = ()
    declaration: str | None = None
    matrices: tuple[MatrixColumn, ...] = (latent_column(),)

    @property
    def extra_columns(self) -> tuple[Column, ...]:
        """The added columns."""
        return tuple(column for column in EXTRA_COLUMNS if column.name in self.extras)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns in order."""
        matrices = chain.from_iterable(matrix.columns for matrix in self.matrices)
        return (*_TEXTS, *matrices, *self.extra_columns)

    @property
    def features(self) -> dict[str, Any]:
        """The columns as `datasets` writes them."""
        return {column.name: column.feature for column in self.columns}

    @property
    def arrow(self) -> pa.Schema:
        """The schema of the files, with the declaration as metadata."""
        schema = pa.schema([pa.field(column.name, column.type) for column in self.columns])
        if self.declaration is None:
            return schema
        return schema.with_metadata({DECLARATION_KEY: self.declaration.encode()})


CLASSIC_SCHEMA = DatasetSchema()
SCHEMA = CLASSIC_SCHEMA.arrow

# Offsets of a list array are signed 32-bit: no batch may hold more values than they can count.
MAX_BATCH_VALUES = 2**31 - 1
# One batch is one row group and is held in memory about three times while it is encoded. 32 MiB
# leaves the per-batch cost unnoticeable and keeps reading one row from a file cheap.
DEFAULT_BATCH_BYTES = 32 << 20


class BatchBuilder:
    """Collects dataset rows into record batches of bounded size.

    Args:
        max_bytes: size of matrices and texts at which a batch is full. A single larger row makes a
            batch of its own.
        schema: of the dataset.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_BATCH_BYTES, schema: DatasetSchema = CLASSIC_SCHEMA
    ) -> None:
        self._schema = schema.arrow
        self._matrices = schema.matrices
        self._extra_columns = schema.extra_columns
        self._extras: list[Mapping[str, Any]] = []
        self._max_bytes = max_bytes
        self._texts: list[RowText] = []
        self._num_bytes = 0
        # One matrix column may fill the batch alone. Memory that is never written is not taken.
        self._buffers = [MatrixBuffer(matrix, max_bytes) for matrix in schema.matrices]

    @property
    def is_empty(self) -> bool:
        """Whether no row was added since the last `finish`."""
        return not self._texts

    def has_room(self, text: RowText, shapes: Sequence[Shape]) -> bool:
        """Whether a row fits; if not, finish the batch first.

        Args:
            text: the row's text columns.
            shapes: of its matrices, in the order of the schema.
        """
        if self.is_empty:
            return True
        num_bytes = self._num_bytes + _num_bytes(text) + self._matrix_bytes(shapes)
        return num_bytes <= self._max_bytes and all(
            buffer.values_after(shape) <= MAX_BATCH_VALUES
            for buffer, shape in zip(self._buffers, shapes, strict=True)
        )

    def add(
        self,
        text: RowText,
        shapes: Sequence[Shape],
        extras: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Place]:
        """Add a row; the caller fills in its matrices.

        Args:
            text: the row's text columns.
            shapes: of its matrices, in the order of the schema.
            extras: its values in the added columns, by name.

        Returns:
            The places of the matrices, to be filled before the next `add` or `finish`.

        Raises:
            ValueError: when the row has more values than a batch may hold.
        """
        for buffer, shape in zip(self._buffers, shapes, strict=True):
            if buffer.values_after(shape) > MAX_BATCH_VALUES:
                raise ValueError(
                    f"a matrix of {shape.num_rows} rows does not fit into an Arrow list"
                )
        self._texts.append(text)
        self._extras.append(extras)
        self._num_bytes += _num_bytes(text) + self._matrix_bytes(shapes)
        return [buffer.add(shape) for buffer, shape in zip(self._buffers, shapes, strict=True)]

    def finish(self) -> pa.RecordBatch:
        """Return the rows added so far as one batch.

        Its matrices are this builder's buffers, not a copy: write the batch before the next `add`.
        """
        texts = [
            pa.array([getattr(text, name) for text in self._texts], type=pa.string())
            for name in TEXT_COLUMNS
        ]
        matrices = [array for buffer in self._buffers for array in buffer.arrays()]
        extras = [
            pa.array([row[column.name] for row in self._extras], type=column.type)
            for column in self._extra_columns
        ]
        batch = pa.RecordBatch.from_arrays([*texts, *matrices, *extras], schema=self._schema)
        self._texts, self._extras = [], []
        self._num_bytes = 0
        for buffer in self._buffers:
            buffer.reset()
        return batch

    def _matrix_bytes(self, shapes: Sequence[Shape]) -> int:
        return sum(
            matrix.num_bytes(shape) for matrix, shape in zip(self._matrices, shapes, strict=True)
        )


def _num_bytes(text: RowText) -> int:
    # Characters stand for bytes here: only the order of magnitude matters.
    return len(text.task) + len(text.task_id) + len(text.plan)
