"""Wording of a disk that a run cannot write to: the flag that names it, and the room it needs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentwire_batch.errors import BatchError, DiskError, StorageError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.upload import size_text

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _unknown() -> None:
    return None


@contextmanager
def named_disk(
    layout: OutputLayout, bytes_needed: Callable[[], int | None] = _unknown
) -> Iterator[None]:
    """Let an error of the directory in which a run works name its flag, and the room it needs.

    Args:
        layout: of the directory.
        bytes_needed: estimates what the run needs there in all; None: not known. Called only after
            an error.

    Raises:
        StorageError: in place of a DiskError.
    """
    try:
        yield
    except DiskError as error:
        text = f"{layout.flag}: {error}"
        if error.number in _FULL | {errno.EROFS}:
            text += _room(layout, bytes_needed)
        if error.number in _FULL:
            text += "; make room there, and rerun the same command"
        raise StorageError(text) from error


def bytes_in(path: Path) -> int:
    """Return the size of all files in a directory; 0 where there is none."""
    sizes = 0
    for file in path.rglob("*"):
        # Other ranks may remove files meanwhile.
        with suppress(OSError):
            sizes += file.lstat().st_size if file.is_file() else 0
    return sizes


def _room(layout: OutputLayout, bytes_needed: Callable[[], int | None]) -> str:
    needed = None
    # What was written may not be readable either.
    with suppress(BatchError, OSError):
        needed = bytes_needed()
    if needed is None:
        return ""
    has = size_text(bytes_in(layout.partial))
    return f"; this run needs about {size_text(needed)} there in all, and {has} are written"
