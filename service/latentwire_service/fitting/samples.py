"""Plans and their latents, streamed from a dataset: no more than a buffer of them is in memory.

Reads what `collect` writes: a Parquet file, or an output directory that holds one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latentwire.held_out import is_held_out
from latentwire_service.engine.seams.bridge import BridgeError, BridgeSource, Rows

DATA_NAME = "data.parquet"
_COLUMNS = ("task_id", "plan", "hidden_state")
_DECLARATION_KEY = b"latentwire"
_READ_ROWS = 16
_BUFFER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One plan and its latent.

    Attributes:
        task_id: id of the task.
        plan: the sender's text.
        rows: `[L, H_sender]` float32.
        token_ids: the sender's tokens; None when the dataset does not hold them.
    """

    task_id: str
    plan: str
    rows: Rows
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset of latents.

    Attributes:
        path: of the Parquet file.
        num_rows: rows of the file; some may be unusable.
        declaration: what the file says about its latents, by the names of `BridgeSource`.
    """

    path: Path
    num_rows: int
    declaration: dict[str, Any]

    @classmethod
    def from_path(cls, path: Path) -> Dataset:
        """Find the file and check its columns.

        Raises:
            BridgeError: there is none, it cannot be read, or a column is missing.
        """
        file = path / DATA_NAME if path.is_dir() else path
        if not file.is_file():
            raise BridgeError(
                f"DATASET: there is no {file.name}",
                "Give the output directory of latentwire collect, or its data.parquet.",
            )
        try:
            metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
        except (OSError, pa.ArrowException) as error:
            raise BridgeError("DATASET: the file is not Parquet, or is damaged") from error
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            raise BridgeError(f"DATASET: has no column {', '.join(missing)}")
        if not _holds_matrices(schema.field("hidden_state").type):
            raise BridgeError("DATASET: its column hidden_state holds no lists of rows")
        return cls(file, metadata.num_rows, _declaration(schema.metadata or {}))

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        """Yield the usable rows in order: those with a plan and a latent of finite numbers.

        Args:
            limit: rows of the file to read; None: all.

        Raises:
            BridgeError: the file is damaged.
        """
        remaining = self.num_rows if limit is None else limit
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:
                names = file.schema_arrow.names
                columns = [*_COLUMNS, *(["token_ids"] if "token_ids" in names else [])]
                for batch in file.iter_batches(_READ_ROWS, columns=columns):
                    for index in range(min(batch.num_rows, remaining)):
                        sample = _sample(batch, index)
                        if sample is not None:
                            yield sample
                    remaining -= batch.num_rows
                    if remaining <= 0:
                        return
        except (OSError, pa.ArrowException, ValueError) as error:
            raise BridgeError("DATASET: the file is damaged") from error


@dataclass(frozen=True, slots=True)
class Split:
    """Which tasks are held out: decided by each task's id, so that it needs no list.

    Attributes:
        dataset: the samples.
        seed: another seed holds out other tasks.
        fraction: of the tasks, from 0 to 1.
        max_rows: longer latents and their plans are cut to so many rows.
        limit: rows of the file to read.
        width: of each latent; None: that of the first one.
    """

    dataset: Dataset
    seed: int
    fraction: float
    max_rows: int
    limit: int | None = None
    width: int | None = None

    def held_out(self) -> Iterator[Sample]:
        """Yield the held-out samples in order."""
        return (sample for sample in self._cut() if self._is_held_out(sample.task_id))

    def training(self) -> Iterator[Sample]:
        """Yield the other samples in order."""
        return (sample for sample in self._cut() if not self._is_held_out(sample.task_id))

    def batches(self, size: int) -> Iterator[list[Sample]]:
        """Yield batches of training samples without end, each epoch in another order.

        Args:
            size: samples of a batch; an epoch's last ones, which are fewer, are left out.

        Raises:
            BridgeError: there are fewer samples than a batch holds.
        """
        epoch = 0
        while True:
            batch: list[Sample] = []
            is_empty = True
            for sample in _shuffled(self.training(), random.Random(f"{self.seed}:{epoch}")):
                batch.append(sample)
                if len(batch) == size:
                    yield batch
                    batch, is_empty = [], False
            if is_empty:
                raise BridgeError(
                    f"DATASET: there are fewer usable rows for training than a batch of {size}"
                )
            epoch += 1

    def _cut(self) -> Iterator[Sample]:
        width = self.width
        for sample in self.dataset.samples(self.limit):
            width = width or sample.rows.shape[1]
            if sample.rows.shape[1] != width:
                raise BridgeError(
                    f"DATASET: a latent is {sample.rows.shape[1]} wide, not {width}",
                    "--sender-width states the width of the sender's rows.",
                )
            token_ids = None if sample.token_ids is None else sample.token_ids[: self.max_rows]
            yield Sample(sample.task_id, sample.plan, sample.rows[: self.max_rows], token_ids)

    def _is_held_out(self, task_id: str) -> bool:
        return is_held_out(task_id, self.seed, self.fraction)


def _shuffled(samples: Iterator[Sample], draw: random.Random) -> Iterator[Sample]:
    """Yield samples in a random order, as far as a bounded buffer allows."""
    buffer: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        buffer.append(sample)
        num_bytes += sample.rows.nbytes
        while num_bytes > _BUFFER_BYTES and len(buffer) > 1:
            chosen = _take(buffer, draw)
            num_bytes -= chosen.rows.nbytes
            yield chosen
    while buffer:
        yield _take(buffer, draw)


def _take(buffer: list[Sample], draw: random.Random) -> Sample:
    index = draw.randrange(len(buffer))
    buffer[index], buffer[-1] = buffer[-1], buffer[index]
    return buffer.pop()


def _sample(batch: pa.RecordBatch, index: int) -> Sample | None:
    plan = batch.column("plan")[index].as_py()
    rows = _matrix(batch.column("hidden_state"), index)
    if not plan or rows is None:
        return None
    token_ids = None
    if "token_ids" in batch.schema.names:
        token_ids = tuple(batch.column("token_ids")[index].as_py() or ())
    return Sample(str(batch.column("task_id")[index].as_py()), plan, rows, token_ids or None)


def _holds_matrices(kind: pa.DataType) -> bool:
    for _ in range(2):
        if not (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):
            return False
        kind = kind.value_type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _matrix(column: pa.Array, index: int) -> npt.NDArray[np.float32] | None:
    """Return one latent as a matrix of its own; None if it is empty, ragged or not finite."""
    rows = column.slice(index, 1).flatten()
    lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
    values = rows.flatten()
    if len(lengths) != 1 or values.null_count:
        return None
    # A copy: a view would keep the whole batch in memory.
    matrix = np.array(values.to_numpy(zero_copy_only=False), dtype=np.float32)
    if not matrix.size or not np.isfinite(matrix).all():
        return None
    return matrix.reshape(len(rows), int(lengths[0]))


def _declaration(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what the file says about its latents and their model; empty when it says nothing."""
    try:
        value = json.loads(metadata.get(_DECLARATION_KEY, b"{}"))
    except (ValueError, RecursionError):
        return {}
    parts = [value.get(name) for name in ("latent", "model")] if isinstance(value, dict) else []
    declared: dict[str, Any] = {}
    for part in parts:
        declared |= part if isinstance(part, dict) else {}
    names = BridgeSource.__dataclass_fields__
    return {name: given for name, given in declared.items() if name in names}
