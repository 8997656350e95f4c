"""Errors of a collection, and the wording of the operating system's errors.

BatchError
├── UsageError            the command cannot run as given: exit status 2
│   ├── InputError            the dataset cannot be read, or one of its rows is unusable
│   └── OutputBusyError       another collection writes to the same directory
├── StorageError          the output cannot be written or read back: exit status 1
│   └── DiskError             the directory in which a run works cannot be (a full disk)
├── ReplicasLostError     no replica is left to send rows to: exit status 1
└── RankLostError         another process of the run is gone: exit status 1

RunInterrupted            a signal ended the run: exit status 130
LocationError             an OSError of a place behind a URL, which becomes one of the above
"""

from __future__ import annotations

import os


class BatchError(Exception):
    """Base of every error this package raises; its text is meant for the terminal."""


class UsageError(BatchError):
    """The command cannot run as given; nothing was written."""


class RivalError(UsageError):
    """Another machine's run has finished another dataset where this run wants its own."""

    def __init__(self) -> None:
        super().__init__(
            "--output-dir: another run has finished a dataset there in the meantime; the rows of "
            "this one are kept in the work directory. --overwrite discards both and starts from "
            "scratch"
        )


class InputError(UsageError):
    """The dataset cannot be read, or one of its rows cannot be used."""


class OutputBusyError(UsageError):
    """Another collection holds the output directory's lock."""


class StorageError(BatchError):
    """The output directory cannot be written to or read back."""


class DiskError(StorageError):
    """A file cannot be written or read in the directory in which a run works.

    Args:
        text: without a path.
        number: of the operating system's error, as in `errno`; None: it has none.
    """

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.number = number


class ReplicasLostError(BatchError):
    """No replica came up, or all of them stayed away for longer than the patience allowed."""


class RankLostError(BatchError):
    """Another process of the same run ended too early, or never started."""


class RunInterrupted(Exception):
    """A signal ended the run before all rows were settled; finished rows are kept."""


class LocationError(OSError):
    """A place behind a URL refuses, or cannot be reached.

    Args:
        reason: in words, without an address, a path or a key.
        is_users: whether the user has to correct something before another try makes sense.
    """

    def __init__(self, reason: str, is_users: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_users = is_users


def reason_of(error: OSError) -> str:
    """Word the reason of an operating system's error, or of a place behind a URL."""
    if isinstance(error, LocationError):
        return error.reason
    # Not `strerror`: libraries put the path into it.
    return os.strerror(error.errno) if error.errno else type(error).__name__


def storage_error(what: str, error: OSError) -> StorageError:
    """Word an operating system's error without the path in it; a DiskError for this machine's.

    Args:
        what: the predicate of "the output", for example "cannot be written".
        error: its number gives the reason.
    """
    text = f"the output {what}: {reason_of(error)}"
    return StorageError(text) if isinstance(error, LocationError) else DiskError(text, error.errno)
