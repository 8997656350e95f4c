"""What can go wrong in a collection.

BatchError
├── UsageError            the command cannot run as given: exit status 2
│   ├── InputError            the dataset cannot be read, or one of its rows is unusable
│   └── OutputBusyError       another collection is writing to the same directory
├── StorageError          the output cannot be written or read back (a full disk): exit status 1
├── ReplicasLostError     no replica is left to ask: exit status 1
└── RankLostError         another process of the run is gone: exit status 1
"""

from __future__ import annotations


class BatchError(Exception):
    """Base of every error this package raises; its text is meant for the terminal."""


class UsageError(BatchError):
    """The command cannot run as given; nothing was written."""


class InputError(UsageError):
    """The dataset cannot be read, or one of its rows cannot be used."""


class OutputBusyError(UsageError):
    """Another collection holds the output directory's lock."""


class StorageError(BatchError):
    """The output directory cannot be written to or read back."""


class ReplicasLostError(BatchError):
    """No replica came up, or all of them stayed away for longer than the patience allowed."""


class RankLostError(BatchError):
    """Another process of the same run ended too early, or never began."""
