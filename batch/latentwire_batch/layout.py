"""Names in the output directory, the lock on it, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire_batch.errors import OutputBusyError
from latentwire_batch.record_log import storage_error

DATA_NAME = "data.parquet"
HF_DATASET_NAME = "hf_dataset"
FAILURES_NAME = "failures.jsonl"
MANIFEST_NAME = "manifest.json"
# In the order of installation: whoever sees the manifest sees everything it speaks of.
FINAL_NAMES = (DATA_NAME, HF_DATASET_NAME, FAILURES_NAME, MANIFEST_NAME)
_PARTIAL_NAME = ".partial"


@dataclass(frozen=True)
class OutputLayout:
    """Where everything in one output directory is."""

    root: Path

    @property
    def partial(self) -> Path:
        """What an unfinished run needs to go on."""
        return self.root / _PARTIAL_NAME

    @property
    def lock(self) -> Path:
        """Locked while a run writes here."""
        return self.partial / "lock"

    @property
    def settings(self) -> Path:
        """What the unfinished run was asked for; exists from its first row on."""
        return self.partial / "settings.json"

    @property
    def log(self) -> Path:
        """The rows that are done."""
        return self.partial / "rows.log"

    @property
    def staging(self) -> Path:
        """Final files while they are made."""
        return self.partial / "final"

    @property
    def marker(self) -> Path:
        """Exists when the staged files are complete and are being moved into place."""
        return self.partial / "install.json"

    @property
    def manifest(self) -> Path:
        """Exists when the output is complete."""
        return self.root / MANIFEST_NAME

    @property
    def failures(self) -> Path:
        """Rows without a latent, one JSON object per line."""
        return self.root / FAILURES_NAME

    @property
    def hf_dataset(self) -> Path:
        """The dataset as `datasets.load_from_disk` opens it."""
        return self.root / HF_DATASET_NAME

    def has_final_files(self) -> bool:
        """Tell whether any file of a finished output is there."""
        return any((self.root / name).exists() for name in FINAL_NAMES)


@contextmanager
def locked_output(layout: OutputLayout) -> Iterator[None]:
    """Hold the output directory for this process; makes it where it is missing.

    Nothing is left behind of a run that stored nothing.

    Raises:
        OutputBusyError: when another process holds it.
        StorageError: when the directory cannot be made.
    """
    root_existed = layout.root.exists()
    try:
        layout.partial.mkdir(parents=True, exist_ok=True)
        lock_fd = _acquire(layout.lock)
    except OSError as error:
        raise storage_error("cannot be written", error) from error
    try:
        yield
    finally:
        _forget_if_unused(layout, root_existed)
        os.close(lock_fd)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that `write_json` wrote; None when there is none.

    Raises:
        StorageError: when it is there and cannot be read.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error("cannot be read", error) from error
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object durably: after a crash the file is whole, or as it was before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error("cannot be written", error) from error


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard_all(layout: OutputLayout) -> None:
    """Remove everything a collection made here, keeping other people's files and the lock.

    The manifest goes first: without it the rest counts as nothing.
    """
    try:
        for name in reversed(FINAL_NAMES):
            remove(layout.root / name)
        discard_partial(layout)
    except OSError as error:
        raise storage_error("cannot be cleared", error) from error


def discard_partial(layout: OutputLayout) -> None:
    """Remove the unfinished run's files except the lock, the installation's marker last."""
    for path in layout.partial.iterdir():
        if path not in (layout.lock, layout.marker):
            remove(path)
    remove(layout.marker)


def remove(path: Path) -> None:
    """Remove a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise OutputBusyError("--output-dir: another collection is writing there") from error
        # The holder before may have removed the file between the two calls: a lock on a file
        # without a name would keep nobody out.
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def _forget_if_unused(layout: OutputLayout, root_existed: bool) -> None:
    if layout.settings.exists() or layout.marker.exists():
        return
    with suppress(OSError):
        discard_partial(layout)
        layout.lock.unlink()
        layout.partial.rmdir()
        if not root_existed:
            layout.root.rmdir()
