"""Installation of the final files: after a crash, the next run completes it."""

from __future__ import annotations

import os

from latentwire_batch.errors import storage_error
from latentwire_batch.output.discard import discard_partial
from latentwire_batch.output.durable import read_json, remove, sync_directory, write_json
from latentwire_batch.output.layout import FINAL_NAMES, OutputLayout


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
        write_json(layout.marker, {"install": staged})
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
