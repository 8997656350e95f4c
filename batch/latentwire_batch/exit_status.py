"""The end of a collection: the exit status, and the line that states it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from pydantic_settings import BaseSettings

from latentwire.settings_flags import name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, UsageError
from latentwire_batch.locations import Place, as_argument, shown_path
from latentwire_batch.shards.shard import Shard

_ADVICE = {
    "prompt-too-long": "serve with a larger --max-model-len and rerun with --retry-failed; a "
    "smaller --max-new-tokens, with another --output-dir, helps only prompts below the limit",
    "invalid-request": "--retry-failed would fail again; the message says what to change",
    "invalid-row": "correct them in the input and collect into another --output-dir",
    "payload-too-large": "serve with a larger --max-body-bytes and rerun with --retry-failed",
    "ends-replica": "the log of the replicas says why they ended; --retry-failed tries them again",
    "compression-failed": "the messages say why; another compressor needs another --output-dir",
    "number-format": "bfloat16 or float32 as --storage-dtype holds them; another format needs "
    "another --output-dir",
    "connection-failed": "no replica ended, so look at the network, or the proxy between; "
    "--retry-failed tries them again",
    "timeout": "rerun with --retry-failed and a larger --timeout",
}
_FAILS_AGAIN = ("invalid-request", "invalid-row", "compression-failed", "number-format")


class ExitStatus(IntEnum):
    """Exit statuses of the commands."""

    ALL_ROWS = 0
    FAILED = 1
    USAGE = 2
    SOME_ROWS_FAILED = 3
    INTERRUPTED = 130


FINISHED = (ExitStatus.ALL_ROWS, ExitStatus.SOME_ROWS_FAILED)
"""Statuses with which a dataset is complete in its place."""


def status_of(error: BatchError) -> ExitStatus:
    """Return the exit status for an error."""
    return ExitStatus.USAGE if isinstance(error, UsageError) else ExitStatus.FAILED


def run_to_exit_status(
    run: Callable[[], int],
    console: Console,
    args: Sequence[str],
    settings_type: type[BaseSettings] = CollectSettings,
) -> int:
    """Run a command line; report the error or signal that ends it early.

    Args:
        run: parses the command line, works, and returns the exit status.
        console: for the report.
        args: the command line; an error in a setting that it does not give names the variable.
        settings_type: of the settings.

    Returns:
        The exit status.
    """
    replace_unencodable()
    try:
        return run()
    except BatchError as error:
        console.say(name_variables(str(error), settings_type, args))
        return status_of(error)
    except KeyboardInterrupt:
        return report_interrupted(console)
    except SystemExit as request:
        # argparse exits after --help.
        return int(request.code or 0)


@dataclass(frozen=True)
class Written:
    """A dataset that was written, for the last lines of a run.

    Attributes:
        num_finished: rows with a latent.
        failures: rows without one, by code.
        num_cut: finished rows whose plan reached `max_new_tokens`.
        max_new_tokens: of the run.
        output_dir: of the dataset, as the user gave it.
        shard: that was written; None: all rows.
    """

    num_finished: int
    failures: Mapping[str, int]
    num_cut: int
    max_new_tokens: int
    output_dir: Place
    shard: Shard | None = None


def report_written(console: Console, written: Written) -> ExitStatus:
    """State what this run wrote and what to do next, and return the exit status."""
    num_failed = sum(written.failures.values())
    if num_failed:
        console.say(f"{_rows(written.num_finished)} written; {num_failed} failed")
        for code, count in written.failures.items():
            console.say(f"{count} failed with {code} (see failures.jsonl): {_advice(code)}")
    else:
        console.say(f"{_all_rows(written.num_finished)} written")
    if written.num_cut:
        console.say(
            f"{written.num_cut} of {written.num_finished} plans were cut at --max-new-tokens "
            f"{written.max_new_tokens}; a larger value gives whole plans"
        )
    output, shard = written.output_dir, written.shard
    place = shown_path(output)
    if shard is None:
        console.say(
            f"the dataset is in {place}; look at it with: "
            f"latentwire inspect {as_argument(output, 'OUTPUT_DIR')}"
        )
    else:
        console.say(
            f"shard {shard} is in {place}; when all {shard.count} are done, join them with: "
            f"latentwire merge {as_argument(output.parent, 'SHARDS')} -o DATASET"
        )
    return ExitStatus.SOME_ROWS_FAILED if num_failed else ExitStatus.ALL_ROWS


def _all_rows(count: int) -> str:
    return "the only row is" if count == 1 else f"all {count} rows are"


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def can_be_retried(code: str) -> bool:
    """Whether `--retry-failed` may help a row that failed with a code."""
    return code not in _FAILS_AGAIN


def _advice(code: str) -> str:
    return _ADVICE.get(code, "--retry-failed retries them")


def report_nothing_to_do(
    console: Console,
    num_finished: int,
    num_failed: int,
    num_unusable: int = 0,
    is_merged: bool = False,
) -> ExitStatus:
    """State that an earlier run wrote everything, and return the exit status.

    Args:
        console: for the report.
        num_finished: rows with a latent.
        num_failed: rows without one.
        num_unusable: of these, rows that cannot be sent at all.
        is_merged: whether the earlier run was one of `latentwire merge`.
    """
    verb = "merged" if is_merged else "collected"
    if not num_failed:
        console.say(f"nothing to do: {_all_rows(num_finished)} already {verb}")
        return ExitStatus.ALL_ROWS
    if is_merged:
        # Its shards are retried, and some kinds of failures not at all.
        failed = f"{num_failed} failed (see failures.jsonl)"
    else:
        failed = _failed(num_failed) if num_failed > num_unusable else _unusable(num_unusable)
    console.say(f"nothing to do: {_rows(num_finished)} already {verb}; {failed}")
    return ExitStatus.SOME_ROWS_FAILED


def report_interrupted(console: Console) -> ExitStatus:
    """State that a signal ended the run, and return the exit status."""
    console.say("interrupted; rerun the same command to resume")
    return ExitStatus.INTERRUPTED


def _unusable(count: int) -> str:
    return f"{count} cannot be used (see failures.jsonl), which --retry-failed cannot change"


def _failed(count: int) -> str:
    return f"{count} failed (see failures.jsonl), retry them with --retry-failed"
