"""Removal of what a collection wrote, in an order that leaves no half dataset after a crash."""

from __future__ import annotations

from collections.abc import Collection

from latentwire_batch.errors import storage_error
from latentwire_batch.output.durable import remove, write_json
from latentwire_batch.output.layout import FINAL_NAMES, OutputLayout
from latentwire_batch.output.split_data import (
    names_json,
    recorded_splits,
    remove_data,
    split_data,
)


def discard_all(layout: OutputLayout, splits: Collection[str] = ()) -> None:
    """Remove everything a collection wrote; keep other files and the lock.

    The manifest is removed first, because the other files count as a dataset only with it.

    Args:
        layout: of the output.
        splits: whose files are removed besides those of the splits that the manifest names.

    Raises:
        StorageError: when a file cannot be removed.
    """
    try:
        found = recorded_splits(layout)
        if found:
            # Without the manifest, nothing else says which files in `data/` are ours.
            write_json(layout.discarded, names_json(found))
        for name in reversed(FINAL_NAMES):
            if layout.is_replaceable(name):
                remove(layout.root / name)
        remove_data(layout.root, split_data(layout.root, found | set(splits)))
        discard_partial(layout)
    except OSError as error:
        raise storage_error("cannot be cleared", error) from error


def discard_partial(layout: OutputLayout) -> None:
    """Remove the unfinished run's files except the locks; remove the installation's marker last."""
    for path in layout.partial.iterdir():
        if path not in (layout.lock, layout.owner_token, layout.marker):
            remove(path)
    remove(layout.marker)
