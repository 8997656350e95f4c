"""The upload of finished files: each one whole, a few at a time, and none of them twice.

A record next to the staged files says what has arrived, so that an upload that was cut short goes
on where it ended.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from latentwire_batch.console import Notify
from latentwire_batch.errors import StorageError
from latentwire_batch.locations import Folder

# With the parts of `Folder.put`, they take 150 MiB of memory in an object store.
_FILES_AT_A_TIME = 2
# As `Folder.put` names a file that has not arrived.
_LEFT_OVER = re.compile(r"(?:.*/)?\.[^/]+\.[0-9a-f]{8}\.tmp")
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def is_left_over(name: str) -> bool:
    """Whether a file of a folder is a part of one that never arrived."""
    return _LEFT_OVER.fullmatch(name) is not None


@dataclass(frozen=True)
class _Arrived:
    """One file that has arrived.

    Attributes:
        name: relative to the folder.
        size: in bytes.
        checksum: of the file in its folder; see `Folder.checksum`.
    """

    name: str
    size: int
    checksum: str


class Upload:
    """Sends files of one directory to a folder.

    Args:
        folder: takes the files.
        directory: holds them, complete; they do not change any more.
        record: file that says what has arrived.
        notify: told how many files are sent.
    """

    def __init__(self, folder: Folder, directory: Path, record: Path, notify: Notify) -> None:
        self._folder = folder
        self._directory = directory
        self._record = record
        self._notify = notify
        self._lock = threading.Lock()

    def send(
        self,
        names: Sequence[str],
        check: Callable[[], None] = lambda: None,
        last: Collection[str] = (),
    ) -> None:
        """Send the files that have not arrived.

        Args:
            names: of the files, relative to the directory.
            check: called before each file is sent; may raise.
            last: those of them that are sent when all others have arrived.

        Raises:
            LocationError: when the folder refuses one, or cannot be reached.
            OSError: when a file cannot be read, or the record cannot be written.
        """
        left = self._missing(names)
        num_bytes = sum((self._directory / name).stat().st_size for name in left)
        kept = f"; {len(names) - len(left)} are there already" if len(left) < len(names) else ""
        self._notify(
            f"uploading {len(left)} files ({size_text(num_bytes)}) to {self._folder.shown}{kept}"
        )

        def send(name: str) -> None:
            check()
            self._send(name)

        _for_each(send, [name for name in left if name not in last])
        _for_each(send, [name for name in left if name in last])

    def verify(self, names: Sequence[str]) -> None:
        """Check that the folder holds all files as they arrived.

        Args:
            names: of the files, relative to the directory.

        Raises:
            StorageError: when one was changed or removed in the meantime.
            LocationError: when the folder cannot be reached.
        """
        changed = self._missing(names)
        if changed:
            raise StorageError(
                f"--output-dir: {len(changed)} files were changed while the others were uploaded, "
                f"like {changed[0]}; the same command sends them again"
            )

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Name the files that the folder does not hold as they arrived, in order."""
        arrived, sizes = self._arrived(), self._folder.sizes()
        missing: list[str] = []

        def look(name: str) -> None:
            if not self._is_there(name, arrived, sizes):
                missing.append(name)

        _for_each(look, names)
        return sorted(missing)

    def _is_there(
        self, name: str, arrived: Mapping[str, _Arrived], sizes: Mapping[str, int]
    ) -> bool:
        """Whether the folder still holds the file as it arrived."""
        known = arrived.get(name)
        size = (self._directory / name).stat().st_size
        if known is None or not known.size == size == sizes.get(name):
            return False
        return self._folder.checksum(name) == known.checksum

    def _send(self, name: str) -> None:
        path = self._directory / name
        self._folder.put(name, path)
        arrived = _Arrived(name, path.stat().st_size, self._folder.checksum(name))
        # The line feed in front ends a line whose writing was cut off.
        line = "\n" + json.dumps(asdict(arrived), ensure_ascii=False) + "\n"
        with self._lock, self._record.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _arrived(self) -> dict[str, _Arrived]:
        found: dict[str, _Arrived] = {}
        try:
            lines = self._record.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                arrived = _Arrived(**json.loads(line))
            except (ValueError, TypeError):
                # The end of a write that was cut off; its file is sent again.
                continue
            found[arrived.name] = arrived
        return found


def _for_each(work: Callable[[str], None], names: Sequence[str]) -> None:
    """Work on all names, a few at a time; raise the first error.

    The threads do not keep an interrupted process alive.
    """
    todo: SimpleQueue[str] = SimpleQueue()
    ended: SimpleQueue[Exception | None] = SimpleQueue()
    for name in names:
        todo.put(name)

    def run() -> None:
        while True:
            try:
                name = todo.get_nowait()
            except Empty:
                return
            try:
                work(name)
            except Exception as error:
                ended.put(error)
                return
            ended.put(None)

    for index in range(min(_FILES_AT_A_TIME, len(names))):
        threading.Thread(target=run, name=f"upload-{index}", daemon=True).start()
    for _ in names:
        error = ended.get()
        if error is not None:
            while not todo.empty():
                todo.get_nowait()
            raise error


def size_text(num_bytes: float) -> str:
    """Return a number of bytes for a message, like `1.5 GB`."""
    for unit in _UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {_UNITS[-1]}"
