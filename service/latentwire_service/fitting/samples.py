"""Plans and their latents, streamed from a dataset: no more than a buffer of them is in memory.

Reads what `collect` writes: a Parquet file, or an output directory that holds one or several.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latentwire.held_out import is_held_out
from latentwire.number_formats import VALUE_DTYPES, has_scales
from latentwire.split_files import DATA_DIRECTORY, SplitFilesError, find_splits
from latentwire.storage import (
    DECLARATION_KEY,
    MatrixStorage,
    StorageDeclarationError,
    declared_storage,
    scale_column,
)
from latentwire_service.engine.seams.bridge import BridgeError, BridgeSource, Rows

DATA_NAME = "data.parquet"
_LATENT = "hidden_state"
_COLUMNS = ("task_id", "plan", _LATENT)
# Arrow types of codes, which are no numbers without what the file says about them.
_CODE_TYPES = (pa.uint16(), pa.int8(), pa.uint8())
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
        paths: of the Parquet files, in order.
        num_rows: rows of the files; some may be unusable.
        declaration: what the file says about its latents, by the names of `BridgeSource`.
        storage: number format of its latents.
    """

    paths: tuple[Path, ...]
    num_rows: int
    declaration: dict[str, Any]
    storage: MatrixStorage = field(default_factory=MatrixStorage)

    @classmethod
    def from_path(cls, path: Path, split: str | None = None) -> Dataset:
        """Find the files and check their columns.

        Args:
            path: of a file, or of a directory that holds one, or the files of splits.
            split: the one to read; None: the only one.

        Raises:
            BridgeError: there is none, it cannot be read, or a column is missing.
        """
        files = _files(path, split)
        try:
            num_rows = sum(pq.read_metadata(file).num_rows for file in files)
            schema = pq.read_schema(files[0])
        except (OSError, pa.ArrowException) as error:
            raise BridgeError("DATASET: the file is not Parquet, or is damaged") from error
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            raise BridgeError(f"DATASET: has no column {', '.join(missing)}")
        if not _holds_matrices(schema.field(_LATENT).type):
            raise BridgeError("DATASET: its column hidden_state holds no lists of rows")
        declared = _declared(schema.metadata or {})
        storage = _storage(schema, declared)
        return cls(files, num_rows, _declaration(declared), storage)

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        """Yield the usable rows in order: those with a plan and a latent of finite numbers.

        Args:
            limit: rows of the file to read; None: all.

        Raises:
            BridgeError: the file is damaged.
        """
        remaining = self.num_rows if limit is None else limit
        try:
            for batch in self._batches():
                for index in range(min(batch.num_rows, remaining)):
                    sample = _sample(batch, index, self.storage)
                    if sample is not None:
                        yield sample
                remaining -= batch.num_rows
                if remaining <= 0:
                    return
        except (OSError, pa.ArrowException, ValueError) as error:
            raise BridgeError("DATASET: the file is damaged") from error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for path in self.paths:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                names = file.schema_arrow.names
                further = ["token_ids"] if "token_ids" in names else []
                if has_scales(self.storage.dtype):
                    further.append(scale_column(_LATENT))
                yield from file.iter_batches(_READ_ROWS, columns=[*_COLUMNS, *further])


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
                hint = "All of its latents must have one width."
                if self.width is not None:
                    hint = "--sender-width states the width of the sender's rows."
                raise BridgeError(
                    f"DATASET: a latent is {sample.rows.shape[1]} wide, not {width}", hint
                )
            token_ids = None if sample.token_ids is None else sample.token_ids[: self.max_rows]
            yield Sample(sample.task_id, sample.plan, sample.rows[: self.max_rows], token_ids)

    def _is_held_out(self, task_id: str) -> bool:
        return is_held_out(task_id, self.seed, self.fraction)


def _files(path: Path, split: str | None) -> tuple[Path, ...]:
    """Find the Parquet files of a dataset, or of one of its splits."""
    file = path / DATA_NAME if path.is_dir() else path
    if file.is_file() and split is None:
        return (file,)
    try:
        splits = find_splits(path / DATA_DIRECTORY) or find_splits(path)
    except SplitFilesError as error:
        raise BridgeError(f"DATASET: {error}") from error
    names = ", ".join(one.name for one in splits)
    if split is not None and split not in {one.name for one in splits}:
        raise BridgeError(f"--split: no split {split!r}; DATASET has {names or 'none'}")
    if not splits:
        raise BridgeError(
            f"DATASET: there is no {file.name}",
            "Give the output directory of latentwire collect, or its data.parquet.",
        )
    if split is None and len(splits) > 1:
        raise BridgeError("DATASET: has several splits", f"--split names one of: {names}")
    return next(one.paths for one in splits if split in (None, one.name))


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


def _sample(batch: pa.RecordBatch, index: int, storage: MatrixStorage) -> Sample | None:
    plan = batch.column("plan")[index].as_py()
    rows = _matrix(batch, index, storage)
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


def _matrix(
    batch: pa.RecordBatch, index: int, storage: MatrixStorage
) -> npt.NDArray[np.float32] | None:
    """Return one latent as a matrix of its own; None if it is empty, ragged or not finite."""
    rows = batch.column(_LATENT).slice(index, 1).flatten()
    lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
    values = rows.flatten()
    if len(lengths) != 1 or values.null_count:
        return None
    # A copy: a view would keep the whole batch in memory.
    stored = np.array(values.to_numpy(zero_copy_only=False), dtype=VALUE_DTYPES[storage.dtype])
    scales = None
    if has_scales(storage.dtype):
        flat = batch.column(scale_column(_LATENT)).slice(index, 1).flatten()
        if flat.null_count or len(flat) != len(rows):
            return None
        scales = flat.to_numpy(zero_copy_only=False)
    matrix = storage.decode(stored.reshape(len(rows), int(lengths[0])), scales)
    return matrix if matrix.size and np.isfinite(matrix).all() else None


def _storage(schema: pa.Schema, declared: Mapping[str, Any]) -> MatrixStorage:
    """Return how the latents are stored.

    Raises:
        BridgeError: the file holds codes, and does not say what they mean.
    """
    number = schema.field(_LATENT).type.value_type.value_type
    if pa.types.is_floating(number):
        # Whatever is declared: another tool may have decoded the column.
        return MatrixStorage()
    try:
        storage = declared_storage(declared, _LATENT)
    except StorageDeclarationError as error:
        raise BridgeError(f"DATASET: {error}") from error
    if storage is None:
        if number in _CODE_TYPES:
            raise BridgeError(
                f"DATASET: its column hidden_state holds {number}, and the file does not say what "
                "these codes mean"
            )
        return MatrixStorage()
    if has_scales(storage.dtype) and scale_column(_LATENT) not in schema.names:
        raise BridgeError(f"DATASET: has no column {scale_column(_LATENT)}")
    return storage


def _declared(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what the file says about how it was made; empty when it says nothing."""
    try:
        value = json.loads(metadata.get(DECLARATION_KEY, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _declaration(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is declared about the latents and their model."""
    declared: dict[str, Any] = {}
    for part in (value.get(name) for name in ("latent", "model")):
        declared |= part if isinstance(part, dict) else {}
    names = BridgeSource.__dataclass_fields__
    return {name: given for name, given in declared.items() if name in names}
