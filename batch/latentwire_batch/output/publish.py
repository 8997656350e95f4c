"""Moving complete final files into place, so that a crash in between can be made good."""

from __future__ import annotations

import os

from latentwire_batch.journal.record_log import storage_error
from latentwire_batch.output.layout import (
    FINAL_NAMES,
    OutputLayout,
    discard_partial,
    read_json,
    remove,
    sync_directory,
    write_json,
)


def install(layout: OutputLayout) -> None:
    """Put the staged files in the place of what is there, and remove the unfinished run's files.

    Renames of several files are not one step. The marker, written first, makes them so: while it
    exists, `finish_install` completes what was begun.
    """
    try:
        sync_directory(layout.staging)
        staged = [name for name in FINAL_NAMES if (layout.staging / name).exists()]
        write_json(layout.marker, {"install": staged})
    except OSError as error:
        raise storage_error("cannot be written", error) from error
    finish_install(layout)


def finish_install(layout: OutputLayout) -> None:
    """Complete an installation that a crash cut short; does nothing where there is none."""
    marker = read_json(layout.marker)
    if marker is None:
        return
    try:
        for name in FINAL_NAMES:
            target, staged = layout.root / name, layout.staging / name
            if not layout.replaceable(name):
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
