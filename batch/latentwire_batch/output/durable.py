"""Files that appear whole or not at all, and survive a crash once they are there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from latentwire_batch.errors import StorageError, storage_error
from latentwire_batch.locations import Place

_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


def read_json(path: Place) -> dict[str, Any] | None:
    """Read a JSON object that `write_json` wrote; None when the file does not exist.

    Raises:
        StorageError: when the file exists, and cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error("cannot be read", error) from error
    except ValueError as error:
        raise StorageError(f"the output's {path.name} is damaged: not JSON") from error
    if not isinstance(value, dict):
        raise StorageError(f"the output's {path.name} is damaged: not an object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file durably: after a crash it holds the new text or the old one, never a part.

    Raises:
        StorageError: when it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error("cannot be written", error) from error


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable; an error of the system passes through.

    Some file systems (CIFS, FUSE) do so by themselves and refuse the call.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a directory tree, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
