"""Stored datasets as Python values: `latentwire.load` and the rows that it gives.

The files are read by the batch package, which is imported when a dataset is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, Protocol, overload

from latentwire.errors import MissingDependencyError
from latentwire.number_formats import EncodedRows, Rows, decode_rows

_READER = "latentwire_batch.loading"
_DEPENDENCIES = frozenset({"datasets", "fsspec", "pyarrow", "rich"})
_LATENT = "hidden_state"


@dataclass(frozen=True, eq=False)
class LatentRow:
    """One row of a stored dataset; its matrices are decoded when they are first read.

    Attributes:
        task: the task, in words.
        task_id: its id.
        plan: the text that the model generated.
        encoded: its matrices as they are stored, by column.
        extras: its values in the other columns, by name.
    """

    task: str
    task_id: str
    plan: str
    encoded: Mapping[str, EncodedRows] = field(repr=False)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def matrices(self) -> dict[str, Rows]:
        """All matrices by column, `[rows, width]` float32 each."""
        return {name: decode_rows(encoded) for name, encoded in self.encoded.items()}

    @cached_property
    def hidden_state(self) -> Rows | None:
        """The latent, `[rows, hidden_size]` float32; None where the dataset holds none."""
        encoded = self.encoded.get(_LATENT)
        return None if encoded is None else decode_rows(encoded)

    @cached_property
    def compressed(self) -> dict[str, Rows]:
        """The matrices besides the latent, by column, `[rows, width]` float32 each."""
        return {
            name: decode_rows(encoded) for name, encoded in self.encoded.items() if name != _LATENT
        }


class LatentDataset(Protocol):
    """A stored dataset that is read as it is used.

    It has a length, rows by index or slice, and an iterator, so it also serves as a map-style
    dataset of torch.
    """

    @property
    def declaration(self) -> Mapping[str, Any]:
        """What the files say about how they were made; empty when they say nothing."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that are read, in order; empty where the files name none."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    @overload
    def __getitem__(self, index: int) -> LatentRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[LatentRow]: ...
    def __getitem__(self, index: int | slice) -> LatentRow | list[LatentRow]:
        """Return one row, or a list of rows; raises IndexError beyond the end."""
        ...

    def __iter__(self) -> Iterator[LatentRow]:
        """Yield the rows in order, a few at a time in memory."""
        ...


def load(
    path: str | PathLike[str],
    columns: Sequence[str] | None = None,
    split: str | None = None,
) -> LatentDataset:
    """Open a stored dataset; its matrices come back as float32, whatever their number format.

    Args:
        path: an output of `latentwire collect`, a Parquet or Arrow file, or a `save_to_disk`
            directory; or a URL of one, like `s3://bucket/folder`.
        columns: matrix columns to read, like `["hidden_state_comp"]`; None: all.
        split: the only split to read; None: all, one after another.

    Returns:
        The dataset. A directory's Arrow files are memory-mapped, and of a Parquet file one row
        group is in memory.

    Raises:
        DatasetError: when it cannot be read.
        MissingDependencyError: when the batch extra is not installed.
    """
    try:
        reader = importlib.import_module(_READER)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _DEPENDENCIES:
            raise
        raise MissingDependencyError(
            'load() needs the batch extra: pip install "latentwire[batch]"'
        ) from error
    dataset: LatentDataset = reader.load(path, columns, split)
    return dataset
