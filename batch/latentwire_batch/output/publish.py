"""Installation of the final files: after a crash, the next run completes it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from latentwire.split_files import DATA_DIRECTORY
from latentwire_batch.errors import storage_error
from latentwire_batch.output.discard import discard_partial
from latentwire_batch.output.durable import read_json, remove, sync_directory, write_json
from latentwire_batch.output.layout import FINAL_NAMES, OutputLayout
from latentwire_batch.output.split_data import (
    recorded_splits,
    remove_data,
    split_data,
    splits_of,
)


def install(layout: OutputLayout) -> None:
    """Replace the final files by the staged ones, and remove the unfinished run's files.

    The marker makes several renames one step: it is written first, and while it exists
    `finish_install` completes them.

    Raises:
        StorageError: when a file cannot be moved.
    """
    try:
        sync_directory(layout.staging)
        staged = [name for name in FINAL_NAMES if (layout.staging / name).exists()]
        data = split_data(layout.staging)
        splits = recorded_splits(layout) | splits_of(data)
        # Of an earlier run with another number of files.
        stale = sorted(set(split_data(layout.root, splits)) - set(data))
        write_json(layout.marker, {"install": staged, "data": data, "stale": stale})
    except OSError as error:
        raise storage_error("cannot be written", error) from error
    finish_install(layout)


def finish_install(layout: OutputLayout) -> None:
    """Complete an installation that a crash cut short; do nothing when there is none.

    Raises:
        StorageError: when a file cannot be moved.
    """
    marker = read_json(layout.marker)
    if marker is None:
        return
    try:
        _install_data(layout, marker.get("data", []), marker.get("stale", []))
        for name in FINAL_NAMES:
            target, staged = layout.root / name, layout.staging / name
            if not layout.is_replaceable(name):
                continue
            if name not in marker["install"]:
                remove(target)
            elif staged.exists():
                if staged.is_dir():
                    # A directory cannot be renamed over one that is not empty.
                    remove(target)
                os.replace(staged, target)
        sync_directory(layout.root)
        discard_partial(layout)
    except OSError as error:
        raise storage_error("cannot be written", error) from error


def _install_data(layout: OutputLayout, data: Sequence[str], stale: Sequence[str]) -> None:
    """Replace the files of splits; other files in `data/` stay."""
    if not data and not stale:
        return
    directory = layout.root / DATA_DIRECTORY
    directory.mkdir(exist_ok=True)
    for name in data:
        if (layout.staging / name).exists():
            os.replace(layout.staging / name, layout.root / name)
    remove_data(layout.root, stale)
    sync_directory(directory if data else layout.root)
