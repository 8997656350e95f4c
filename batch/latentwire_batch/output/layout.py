"""Names in the output directory, the lock on it, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire_batch.journal.record_log import storage_error
from latentwire_batch.output.locks import acquire_lock

DATA_NAME = "data.parquet"
HF_DATASET_NAME = "hf_dataset"
FAILURES_NAME = "failures.jsonl"
CARD_NAME = "README.md"
MANIFEST_NAME = "manifest.json"
# In the order of installation: whoever sees the manifest sees everything it speaks of.
FINAL_NAMES = (DATA_NAME, HF_DATASET_NAME, FAILURES_NAME, CARD_NAME, MANIFEST_NAME)
# Tells a dataset card that was made here from one that a person wrote.
CARD_MARK = "<!-- made by latentwire -->"
_CARD_HEAD_BYTES = 1 << 13
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

    def rank_log(self, rank: int) -> Path:
        """The rows that one rank has done."""
        return self.partial / f"rows-{rank}.log" if rank else self.log

    def logs_beside(self, rank: int) -> list[Path]:
        """The rows that other ranks have done, in this launch or an earlier one."""
        return sorted(set(self.partial.glob("rows*.log")) - {self.rank_log(rank)})

    @property
    def launch(self) -> Path:
        """What rank 0 announces to the others."""
        return self.partial / "launch.json"

    def rank_lock(self, rank: int) -> Path:
        """Locked while a rank takes part."""
        return self.partial / f"rank-{rank}.lock"

    def rank_note(self, rank: int) -> Path:
        """How far a rank is."""
        return self.partial / f"rank-{rank}.json"

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
        return any((self.root / name).exists() for name in FINAL_NAMES if name != CARD_NAME)

    def replaceable(self, name: str) -> bool:
        """Tell whether a final file may be replaced or removed: a person's own README stays."""
        if name != CARD_NAME or not (self.root / name).exists():
            return True
        with (self.root / name).open("rb") as file:
            return CARD_MARK.encode() in file.read(_CARD_HEAD_BYTES)


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
        lock_fd = acquire_lock(layout.lock)
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
    """Write a JSON object as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file durably: after a crash it is whole, or as it was before.

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
            if layout.replaceable(name):
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


def _forget_if_unused(layout: OutputLayout, root_existed: bool) -> None:
    if layout.settings.exists() or layout.marker.exists():
        return
    with suppress(OSError):
        discard_partial(layout)
        layout.lock.unlink()
        layout.partial.rmdir()
        if not root_existed:
            layout.root.rmdir()
