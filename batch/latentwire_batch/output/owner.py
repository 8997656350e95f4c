"""The owner of a folder behind a URL: of several machines, one at a time writes to it.

A numbered record in the folder names its owner, who changes it every few seconds. A record that
stays the same for a minute is of a run that is gone, and the run that creates the next number first
takes over. The highest number owns the folder, so an owner that was away for long finds out.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentwire_batch.console import Notify
from latentwire_batch.errors import LocationError, OutputBusyError, UsageError, storage_error
from latentwire_batch.locations import Folder
from latentwire_batch.locations.errors import output_errors
from latentwire_batch.output.layout import OWNERS_NAME

_BEAT_S = 10.0
# Six beats: a store that is slow for a while loses no owner.
_STALE_S = 60.0
_POLL_S = 1.0
# So long after the store has named the owner, nobody can have taken over.
_TRUST_S = 5.0
_TOKEN_BYTES = 16


class Owner:
    """The ownership of one folder, for the run of one work directory.

    Where every write is a commit, as on the Hugging Face hub, folders have no owners.

    Args:
        folder: to be owned.
        token_file: identifies the run; a rerun that finds it takes the folder without waiting.
        notify: told when another run may own the folder.
    """

    def __init__(self, folder: Folder, token_file: Path, notify: Notify) -> None:
        self._folder = folder
        self._records = folder.below(OWNERS_NAME)
        self._token_file = token_file
        self._notify = notify
        self._token = ""
        self._name = ""
        self._confirmed_s = 0.0
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the folder while the context lasts.

        Raises:
            OutputBusyError: when another run owns it.
            UsageError, StorageError: when the folder or the token file cannot be used.
        """
        if self._folder.is_versioned:
            yield
            return
        self._token = self._read_token()
        with output_errors("cannot be written"):
            self._acquire()
        self._ended.clear()
        beats = threading.Thread(target=self._beat, name="owner", daemon=True)
        beats.start()
        try:
            yield
        finally:
            self._ended.set()
            beats.join()
            # The dataset is complete, or a rerun of this work directory finds its own record.
            with suppress(LocationError):
                if self._is_own():
                    self._records.remove([self._name])

    def check_lately(self) -> None:
        """Do as `check` does, unless the store has confirmed the owner in the last seconds."""
        if _now_s() - self._confirmed_s > _TRUST_S:
            self.check()

    def check(self) -> None:
        """Ask the store whether this run still owns the folder.

        Raises:
            OutputBusyError: when another run has taken it over.
        """
        if self._folder.is_versioned:
            return
        with output_errors("cannot be read"):
            is_own = self._is_own()
        if not is_own:
            raise OutputBusyError(
                "--output-dir: another run has taken it over, because this one gave no sign for a "
                "minute; its rows are kept in the work directory, and the same command continues "
                "when the other run has ended"
            )

    def _acquire(self) -> None:
        while True:
            names = list(self._records.sizes())
            newest = names[-1] if names else None
            content = None if newest is None else self._records.read(newest)
            if newest is not None:
                if content is None:
                    # It was removed between the two requests.
                    continue
                if self._is_ours(content):
                    self._name = newest
                    if self._renew():
                        return
                    continue
                if not self._is_abandoned(newest, content):
                    continue
            name = f"{_number_of(newest) + 1:06}.json"
            if self._records.create(name, self._record()):
                self._name = name
                self._records.remove(names)
                return

    def _is_abandoned(self, name: str, content: bytes) -> bool:
        """Watch the record of another run; whether it stays the same.

        Raises:
            OutputBusyError: when it changes.
        """
        self._notify(
            f"another run has not released {self._folder.shown}; watching for up to "
            f"{_STALE_S:.0f} s whether it still works"
        )
        end_s = time.monotonic() + _STALE_S
        while time.monotonic() < end_s:
            time.sleep(_POLL_S)
            names = list(self._records.sizes())
            found = self._records.read(name)
            if found is None and not names:
                return False
            if names[-1:] != [name] or found != content:
                raise OutputBusyError(
                    "--output-dir: another run is writing to it, on another machine or with "
                    "another --work-dir"
                )
        return True

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            # A store that cannot be reached may come back; an upload asks for itself.
            with suppress(LocationError):
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Change the record of this run; whether it still owned the folder.

        Another run may take over between the look and the change, which then makes the old record
        again: it would keep later runs waiting.
        """
        if not self._is_own():
            return False
        if _now_s() - self._confirmed_s > _TRUST_S:
            # What the store said is old; the next beat looks again.
            return True
        self._write(self._name)
        if self._is_own():
            return True
        self._records.remove([self._name])
        return False

    def _is_own(self) -> bool:
        started_s = _now_s()
        if list(self._records.sizes())[-1:] != [self._name]:
            return False
        content = self._records.read(self._name)
        if content is None or not self._is_ours(content):
            return False
        self._confirmed_s = started_s
        return True

    def _is_ours(self, content: bytes) -> bool:
        try:
            return bool(json.loads(content)["run"] == self._token)
        except (ValueError, LookupError, TypeError):
            return False

    def _write(self, name: str) -> None:
        self._records.write(name, self._record())

    def _record(self) -> bytes:
        return json.dumps({"run": self._token, "beat": secrets.token_hex(4)}).encode()

    def _read_token(self) -> str:
        try:
            with suppress(FileNotFoundError):
                token = self._token_file.read_text(encoding="utf-8").strip()
                if token:
                    return token
            token = secrets.token_hex(_TOKEN_BYTES)
            self._token_file.write_text(token, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError):
                raise storage_error("cannot be written", error) from error
            raise UsageError("--work-dir: its .partial/owner is damaged; remove it") from error
        return token


def _now_s() -> float:
    """Return a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _number_of(name: str | None) -> int:
    stem = "0" if name is None else name.partition(".")[0]
    return int(stem) if stem.isdecimal() else 0
