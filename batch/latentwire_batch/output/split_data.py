"""The files of splits in an output directory, which are all that a run may touch in `data/`.

A person may keep other files there. The files of a run are those of the splits that its manifest
names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentwire.split_files import DATA_DIRECTORY, split_of
from latentwire_batch.errors import StorageError
from latentwire_batch.output.durable import read_json, remove
from latentwire_batch.output.layout import OutputLayout

SPLITS = "splits"
"""The key of a manifest with the rows of each split, in order."""


def split_data(directory: Path, splits: Collection[str] | None = None) -> list[str]:
    """Name the files of splits, relative to the directory that holds `data/`.

    Args:
        directory: an output, or the staged files of one.
        splits: whose files are named; None: all.
    """
    data = directory / DATA_DIRECTORY
    names = (path.name for path in data.iterdir()) if data.is_dir() else ()
    found = ((name, split_of(name)) for name in names)
    return sorted(
        f"{DATA_DIRECTORY}/{name}"
        for name, split in found
        if split is not None and (splits is None or split in splits)
    )


def recorded_splits(layout: OutputLayout) -> set[str]:
    """Name the splits of the finished output, or of one whose removal was cut short."""
    names: set[str] = set()
    for path in (layout.manifest, layout.discarded):
        # A damaged file must not keep an output from being removed.
        with suppress(StorageError, TypeError):
            names |= set((read_json(path) or {}).get(SPLITS) or {})
    return names


def stated_splits(manifest: bytes | None) -> set[str]:
    """Name the splits of a manifest; empty for a damaged one, which another step reports."""
    try:
        return set(json.loads(manifest or b"{}").get(SPLITS) or ())
    except (ValueError, AttributeError, TypeError):
        return set()


def with_rows(splits: Mapping[str, int]) -> list[str]:
    """Name the splits that have files: those with rows, or the first where none has any.

    Args:
        splits: the rows of each, in order, as a manifest states them.
    """
    return [name for name, num_rows in splits.items() if num_rows] or list(splits)[:1]


def names_json(splits: Iterable[str]) -> dict[str, Any]:
    """Return names of splits as `recorded_splits` reads them."""
    return {SPLITS: dict.fromkeys(sorted(splits))}


def splits_of(names: Iterable[str]) -> set[str]:
    """Name the splits of which files are."""
    found = (split_of(Path(name).name) for name in names)
    return {split for split in found if split is not None}


def remove_data(directory: Path, names: Iterable[str]) -> None:
    """Remove files of splits, and `data/` if nothing else is in it."""
    for name in names:
        remove(directory / name)
    with suppress(OSError):
        (directory / DATA_DIRECTORY).rmdir()
