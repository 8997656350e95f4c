"""Ownership of an output directory: one process at a time writes to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from latentwire_batch.errors import storage_error
from latentwire_batch.output.discard import discard_partial
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.locks import acquire_lock
from latentwire_batch.output.room import named_disk


@contextmanager
def locked_output(layout: OutputLayout) -> Iterator[None]:
    """Hold the output directory for this process, and create it if it is missing.

    A run that stored nothing leaves nothing behind. Errors of the directory name its flag.

    Raises:
        OutputBusyError: when another process holds it.
        StorageError: when the directory cannot be created, or used.
    """
    root_existed = layout.root.exists()
    with named_disk(layout):
        try:
            layout.partial.mkdir(parents=True, exist_ok=True)
            lock_fd = acquire_lock(layout.lock)
        except OSError as error:
            raise storage_error("cannot be written", error) from error
    try:
        with named_disk(layout):
            yield
    finally:
        _forget_if_unused(layout, root_existed)
        os.close(lock_fd)


def _forget_if_unused(layout: OutputLayout, root_existed: bool) -> None:
    if layout.settings.exists() or layout.marker.exists():
        return
    with suppress(OSError):
        discard_partial(layout)
        layout.owner_token.unlink(missing_ok=True)
        layout.lock.unlink()
        layout.partial.rmdir()
        if layout.is_remote or not root_existed:
            layout.root.rmdir()
