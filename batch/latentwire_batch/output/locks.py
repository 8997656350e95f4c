"""File locks that the system releases when their process ends, for whatever reason."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from latentwire_batch.errors import OutputBusyError, UsageError, storage_error

# `is_locked` takes the lock briefly, so retry before reporting it as held.
_LOCK_TRIES = 4
_LOCK_PAUSE_S = 0.05
# NFS without a lock daemon, Lustre without `-o flock`, some FUSE file systems.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


def acquire_lock(path: Path) -> int:
    """Lock a file until the returned descriptor is closed; create the file if it is missing.

    Raises:
        OutputBusyError: when another process holds the lock.
        UsageError: when the file system has no locks.
        OSError: when the file cannot be opened.
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
                    "--output-dir: another collection is writing to it"
                ) from error
            time.sleep(_LOCK_PAUSE_S)
            continue
        except OSError as error:
            os.close(fd)
            raise _lock_error(error) from error
        # The previous holder may have removed the file between the two calls. A lock on a file
        # without a name would exclude no other process.
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock that `acquire_lock` returned.

    Raises:
        StorageError: when the file exists and cannot be opened.
        UsageError: when the file system has no locks.
    """
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
    except OSError as error:
        raise _lock_error(error) from error
    finally:
        os.close(fd)
    return False


def _lock_error(error: OSError) -> Exception:
    if error.errno not in _NO_LOCKS:
        return storage_error("cannot be locked", error)
    return UsageError(
        "--output-dir: its file system has no file locks (flock), without which two collections "
        "could write to it; use a directory on a local disk and copy the finished dataset, or "
        "mount the file system with locks (Lustre: -o flock; NFS: with lockd, or version 4)"
    )
