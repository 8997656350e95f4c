"""The files of one stored dataset, in the order of its rows, whatever their layout.

Classic: `data.parquet` and `hf_dataset/`, which hold the same rows. Hub: files of several splits in
`data/`. Files and `save_to_disk` directories of other tools are datasets, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self, cast

import pyarrow as pa

from latentwire.split_files import DATA_DIRECTORY, SplitFilesError, find_splits, split_of
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place
from latentwire_batch.output.layout import DATA_NAME, HF_DATASET_NAME, MANIFEST_NAME
from latentwire_batch.output.split_data import SPLITS
from latentwire_batch.shards.shard import FOLDER_PATTERN
from latentwire_batch.tasks.arrow_files import (
    STATE_NAME,
    BatchSource,
    ChooseColumns,
    JoinedBatches,
    arrow_schema,
    files_of_rows,
    input_errors,
    open_batches,
    record_batches,
)

_COUNT_BATCH_ROWS = 4096


@dataclass(frozen=True)
class DatasetPart:
    """One file of a dataset, or one directory that `Dataset.save_to_disk` wrote.

    Attributes:
        path: of the file or directory.
        split: of all its rows; None where the layout names no split.
    """

    path: Place
    split: str | None = None


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset.

    Attributes:
        root: the directory that holds its manifest and its failures, if it has any.
        parts: at least one, in the order of the rows; the rows of a split follow one another.
    """

    root: Place
    parts: tuple[DatasetPart, ...]

    @property
    def paths(self) -> tuple[Place, ...]:
        """The paths of the parts."""
        return tuple(part.path for part in self.parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order of the rows; empty where none is named."""
        names = dict.fromkeys(part.split for part in self.parts)
        return tuple(name for name in names if name is not None)

    @property
    def schema(self) -> pa.Schema:
        """The schema of the files, with their metadata; raises like `batches`."""
        return arrow_schema(self.paths[0])

    def batches(self, choose: ChooseColumns, max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the batches in order: see `record_batches`."""
        for path in self.paths:
            yield from record_batches(path, choose, max_rows)

    def open_batches(self, columns: Sequence[str]) -> BatchSource:
        """Open the files for reading in any order: see `arrow_files.open_batches`."""
        sources = [open_batches(path, columns) for path in self.paths]
        return sources[0] if len(sources) == 1 else JoinedBatches(sources)

    def of_split(self, name: str) -> Self:
        """Return the files of one split.

        Raises:
            InputError: when there is no such split.
        """
        parts = tuple(part for part in self.parts if part.split == name)
        if not parts:
            known = f"it has {', '.join(self.splits)}" if self.splits else "its files name none"
            raise InputError(f"has no split {name!r}; {known}")
        return type(self)(self.root, parts)

    def by_split(self) -> Iterator[tuple[str | None, DatasetFiles]]:
        """Yield the name and the files of each split, in the order of the rows."""
        for name, parts in groupby(self.parts, lambda part: part.split):
            yield name, DatasetFiles(self.root, tuple(parts))

    def num_rows(self) -> int:
        """Count the rows; raises like `batches`."""
        flat = (field.name for field in self.schema if not pa.types.is_nested(field.type))
        # The cheapest column: no latent has to be decoded.
        name = next(flat, self.schema.names[0])
        return sum(batch.num_rows for batch in self.batches(lambda _: [name], _COUNT_BATCH_ROWS))

    def all_row_files(self) -> list[Place]:
        """Return the paths of the files that hold rows, in their order; raises like `batches`."""
        return [file for path in self.paths for file in files_of_rows(path)]

    def all_files(self) -> list[Place]:
        """Return the paths of all files, those inside of directories included."""
        return [file for path in self.paths for file in _files_of(path)]


def locate(path: Place, split: str | None = None, *, prefers_arrow: bool = False) -> DatasetFiles:
    """Find the files of a dataset.

    Args:
        path: an output directory, a file, a `save_to_disk` directory, or a directory with files
            that are named after their splits.
        split: the only one to read; None: all.
        prefers_arrow: whether to read `hf_dataset/` of an output that holds the rows twice.

    Raises:
        InputError: when there is none, or it has no such split.
    """
    with input_errors():
        # Behind a URL, nothing can be mapped, and Parquet is read by ranges.
        files = _found(path, prefers_arrow and isinstance(path, Path))
    return files if split is None else files.of_split(split)


def locate_one_split(path: Place, split: str | None) -> DatasetFiles:
    """Find the files of a dataset like `locate`, for commands that read one split.

    Args:
        path: see `locate`.
        split: the one to read; None: the only one.

    Raises:
        InputError: also when there are several splits, and none is given.
    """
    files = locate(path, split)
    if len(files.splits) > 1:
        raise InputError(f"has several splits; --split names one of: {', '.join(files.splits)}")
    return files


def _found(path: Place, prefers_arrow: bool) -> DatasetFiles:
    if not path.exists():
        raise InputError("no such file or directory")
    if path.is_file() or (path / STATE_NAME).is_file():
        return DatasetFiles(_root_of(path), (DatasetPart(path),))
    names = (HF_DATASET_NAME, DATA_NAME) if prefers_arrow else (DATA_NAME, HF_DATASET_NAME)
    for name in names:
        if (path / name).exists():
            return DatasetFiles(path, (DatasetPart(path / name),))
    for directory in (path / DATA_DIRECTORY, path):
        root = directory.parent if directory.name == DATA_DIRECTORY else directory
        try:
            # It uses no more of a path than a remote one has.
            splits = find_splits(cast(Path, directory), _order(root))
        except SplitFilesError as error:
            raise InputError(str(error)) from error
        if splits:
            parts = (DatasetPart(file, split.name) for split in splits for file in split.paths)
            return DatasetFiles(root, tuple(parts))
    if next(iter(path.glob(FOLDER_PATTERN)), None) is not None:
        raise InputError("holds shards: latentwire merge joins them, and each is a dataset, too")
    raise InputError("holds neither data.parquet nor hf_dataset, and no files of splits in data")


def _files_of(place: Place) -> list[Place]:
    if place.is_file():
        return [place]
    found: Iterable[Place] = place.rglob("*")
    return sorted((file for file in found if file.is_file()), key=str)


def _root_of(path: Place) -> Place:
    return path.parent if path.name in (DATA_NAME, HF_DATASET_NAME) else path


def root_of_file(path: Place) -> Place:
    """Return the directory whose manifest names one file of a dataset, of either layout.

    Args:
        path: of the file; that of a directory is returned.
    """
    if split_of(path.name) is None:
        return _root_of(path)
    folder = path.absolute().parent if isinstance(path, Path) else path.parent
    return folder.parent if folder.name == DATA_DIRECTORY else folder


def _order(root: Place) -> tuple[str, ...]:
    """Name the splits in the order of the rows, as the manifest states it."""
    splits = (read_manifest_json(root) or {}).get(SPLITS)
    return tuple(splits) if isinstance(splits, dict) else ()


def read_manifest_json(root: Place) -> dict[str, Any] | None:
    """Return the manifest of a dataset as JSON values; None where it has none, or it is damaged.

    Args:
        root: the directory that may hold it.
    """
    try:
        value = json.loads((root / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # A file or directory alone has none.
        return None
    return value if isinstance(value, dict) else None
