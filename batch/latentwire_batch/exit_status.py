"""How a collection ends: the exit status, and the line that states it."""

from __future__ import annotations

from enum import IntEnum

from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, UsageError


class ExitStatus(IntEnum):
    """What the command says to the shell."""

    ALL_ROWS = 0
    FAILED = 1
    USAGE = 2
    SOME_ROWS_FAILED = 3
    INTERRUPTED = 130


def status_of(error: BatchError) -> ExitStatus:
    """Tell the exit status for an error."""
    return ExitStatus.USAGE if isinstance(error, UsageError) else ExitStatus.FAILED


def report(console: Console, num_finished: int, num_failed: int, verb: str) -> ExitStatus:
    """Say how it ended, and give the status for that."""
    if not num_failed:
        console.say(f"all {num_finished} rows are {verb}")
        return ExitStatus.ALL_ROWS
    console.say(
        f"{num_finished} rows are {verb}, {num_failed} failed (failures.jsonl); "
        "--retry-failed asks for those again"
    )
    return ExitStatus.SOME_ROWS_FAILED
