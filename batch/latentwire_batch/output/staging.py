"""The directory in which the final files are made before they are moved into place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentwire_batch.errors import storage_error
from latentwire_batch.output.durable import remove


@contextmanager
def emptied_staging(path: Path) -> Iterator[Path]:
    """Make an empty directory for the final files; remove it again when they cannot be written.

    Raises:
        StorageError: when they cannot be written.
    """
    try:
        remove(path)
        path.mkdir()
        yield path
    except OSError as error:
        # Incomplete files would only take the space that is missing.
        with suppress(OSError):
            remove(path)
        raise storage_error("cannot be written", error) from error
