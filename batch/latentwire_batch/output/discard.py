"""Removal of what a collection wrote, in an order that leaves no half dataset after a crash."""

from __future__ import annotations

from latentwire_batch.errors import storage_error
from latentwire_batch.output.durable import remove
from latentwire_batch.output.layout import FINAL_NAMES, OutputLayout


def discard_all(layout: OutputLayout) -> None:
    """Remove everything a collection wrote; keep other files and the lock.

    The manifest is removed first, because the other files count as a dataset only with it.

    Raises:
        StorageError: when a file cannot be removed.
    """
    try:
        for name in reversed(FINAL_NAMES):
            if layout.is_replaceable(name):
                remove(layout.root / name)
        discard_partial(layout)
    except OSError as error:
        raise storage_error("cannot be cleared", error) from error


def discard_partial(layout: OutputLayout) -> None:
    """Remove the unfinished run's files except the lock; remove the installation's marker last."""
    for path in layout.partial.iterdir():
        if path not in (layout.lock, layout.marker):
            remove(path)
    remove(layout.marker)
