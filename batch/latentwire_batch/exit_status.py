"""The end of a collection: the exit status, and the line that states it."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, UsageError


class ExitStatus(IntEnum):
    """Exit statuses of the commands."""

    ALL_ROWS = 0
    FAILED = 1
    USAGE = 2
    SOME_ROWS_FAILED = 3
    INTERRUPTED = 130


def status_of(error: BatchError) -> ExitStatus:
    """Return the exit status for an error."""
    return ExitStatus.USAGE if isinstance(error, UsageError) else ExitStatus.FAILED


def run_to_exit_status(run: Callable[[], int], console: Console) -> int:
    """Run a collection's command line; report the error or signal that ends it early.

    Args:
        run: parses the command line, collects, and returns the exit status.
        console: for the report.

    Returns:
        The exit status.
    """
    try:
        return run()
    except BatchError as error:
        console.say(str(error))
        return status_of(error)
    except KeyboardInterrupt:
        return report_interrupted(console)
    except SystemExit as request:
        # argparse exits after --help.
        return int(request.code or 0)


def report_written(console: Console, num_finished: int, num_failed: int) -> ExitStatus:
    """State how many rows this run wrote, and return the exit status."""
    if not num_failed:
        console.say(f"all {num_finished} rows are written")
        return ExitStatus.ALL_ROWS
    console.say(f"{num_finished} rows are written; {_failed(num_failed)}")
    return ExitStatus.SOME_ROWS_FAILED


def report_nothing_to_do(console: Console, num_finished: int, num_failed: int) -> ExitStatus:
    """State that an earlier run wrote everything, and return the exit status."""
    if not num_failed:
        console.say(f"nothing to do: all {num_finished} rows are already collected")
        return ExitStatus.ALL_ROWS
    console.say(f"nothing to do: {num_finished} rows are already collected; {_failed(num_failed)}")
    return ExitStatus.SOME_ROWS_FAILED


def report_interrupted(console: Console) -> ExitStatus:
    """State that a signal ended the run, and return the exit status."""
    console.say("interrupted; rerun the same command to resume")
    return ExitStatus.INTERRUPTED


def _failed(count: int) -> str:
    return f"{count} failed (see failures.jsonl), retry them with --retry-failed"
