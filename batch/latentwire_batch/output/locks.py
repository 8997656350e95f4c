"""Locks that a process holds until it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from latentwire_batch.errors import OutputBusyError
from latentwire_batch.journal.record_log import storage_error

# Who only asks whether a lock is held holds it for a moment itself.
_LOCK_TRIES = 4
_LOCK_PAUSE_S = 0.05


def acquire_lock(path: Path) -> int:
    """Lock a file, made where it is missing, until the descriptor is closed.

    Raises:
        OutputBusyError: when another process holds it.
    """
    tries_left = _LOCK_TRIES
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            tries_left -= 1
            if not tries_left:
                raise OutputBusyError(
                    "--output-dir: another collection is writing there"
                ) from error
            time.sleep(_LOCK_PAUSE_S)
            continue
        # The holder before may have removed the file between the two calls: a lock on a file
        # without a name would keep nobody out.
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock that `acquire_lock` gave."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error("cannot be read", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
