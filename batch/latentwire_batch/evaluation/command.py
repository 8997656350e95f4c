"""`latentwire evaluate`: checks, scores messages, and shows what they carry."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.console

from latentwire.settings_flags import flag_of, name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.config import OwnReplicaFields
from latentwire_batch.console import Console
from latentwire_batch.dispatch.interrupts import run_interruptible
from latentwire_batch.errors import (
    BatchError,
    RunInterrupted,
    StorageError,
    UsageError,
    storage_error,
)
from latentwire_batch.evaluation.compression.work import CompressionEvaluation
from latentwire_batch.evaluation.outcome import Evaluation, Outcome
from latentwire_batch.evaluation.settings import AnswerFields, EvaluateSettings, ReceiverFields
from latentwire_batch.evaluation.work import BridgeEvaluation
from latentwire_batch.exit_status import ExitStatus, status_of
from latentwire_batch.flags import parse_settings

_COMMAND = "latentwire evaluate"
_FRAME_FIELDS = ("before", "after")
_JSON_FLAG = re.compile(r"^--json(?=$|=)")


def main(args: Sequence[str]) -> int:
    """Evaluate the messages of one bridge, or compressors.

    Args:
        args: the command line after `latentwire evaluate`.

    Returns:
        0 all tasks; 3 some tasks were refused, the numbers are of the others; 2 bad usage, or a
        dataset, bridge or service that do not fit each other; 130 interrupted, the numbers are of
        the tasks until then; 1 any other error.
    """
    replace_unencodable()
    console = Console(sys.stderr, _COMMAND)
    # A field cannot have the name of a method of all settings.
    words = [_JSON_FLAG.sub("--json-file", word) for word in args]
    try:
        settings = parse_settings(
            EvaluateSettings,
            words,
            prog=_COMMAND,
            description="Score a dataset's plans after their latents and after controls: do "
            "messages through a bridge carry something? Or compare compressors of latents.",
        )
        return _evaluate(settings, console)
    except BatchError as error:
        console.say(name_variables(str(error), EvaluateSettings, words))
        return status_of(error)
    except KeyboardInterrupt:
        console.say("interrupted before a task was scored")
        return ExitStatus.INTERRUPTED
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


def _evaluate(settings: EvaluateSettings, console: Console) -> ExitStatus:
    _check_outputs(settings)
    _report_unused(settings, console)
    evaluation = _evaluation(settings, console)
    failure = None
    try:
        run_interruptible(evaluation.run())
        is_interrupted = False
    except RunInterrupted:
        is_interrupted = True
    except BatchError as error:
        is_interrupted, failure = False, error
    if not evaluation.has_numbers:
        if is_interrupted:
            raise KeyboardInterrupt
        raise failure or UsageError(_first_reason(evaluation.refused))
    outcome = evaluation.outcome(is_complete=failure is None and not is_interrupted)
    outcome.show(rich.console.Console())
    _write_files(settings, outcome)
    if is_interrupted:
        console.say(
            f"interrupted; the numbers are of {outcome.num_tasks} of {outcome.num_planned} tasks, "
            "and the same command starts over"
        )
        return ExitStatus.INTERRUPTED
    if failure is not None:
        raise failure
    return ExitStatus.SOME_ROWS_FAILED if evaluation.refused else ExitStatus.ALL_ROWS


def _evaluation(settings: EvaluateSettings, console: Console) -> Evaluation:
    if settings.compressor:
        return CompressionEvaluation.of(settings, console)
    if settings.bridge is None:
        raise UsageError("--bridge: required without --compressor")
    return BridgeEvaluation.of(settings, settings.bridge, console)


def _first_reason(refused: Mapping[str, str]) -> str:
    if not refused:
        return "DATASET: no task could be scored"
    return f"no task could be scored: {next(iter(refused.values()))}"


def _report_unused(settings: EvaluateSettings, console: Console) -> None:
    """Name flags that have no effect next to others."""
    given = settings.model_fields_set
    own = [name for name in OwnReplicaFields.model_fields if name in given]
    if settings.url is not None and own:
        console.say(f"{', '.join(map(flag_of, own))}: no effect with --url")
    if settings.bridge is None and settings.compressor:
        names = [*OwnReplicaFields.model_fields, *ReceiverFields.model_fields, *_FRAME_FIELDS]
        unread = [name for name in names if name in given]
        if unread:
            console.say(f"{', '.join(map(flag_of, unread))}: no effect without --bridge")
    _report_unused_by_subject(settings, console)


def _report_unused_by_subject(settings: EvaluateSettings, console: Console) -> None:
    given = settings.model_fields_set
    answer = [name for name in AnswerFields.model_fields if name in given]
    if settings.compressor and answer:
        console.say(f"{', '.join(map(flag_of, answer))}: no effect with --compressor")
    elif settings.answers is None and answer:
        console.say(f"{', '.join(map(flag_of, answer))}: no effect without --answers")
    if settings.k is not None and not settings.compressor:
        console.say("--k: no effect without --compressor")


def _check_outputs(settings: EvaluateSettings) -> None:
    """Refuse files that cannot be written, before minutes are spent.

    Raises:
        UsageError: there is no folder for a file, or the file is a folder.
    """
    for flag, path in (("--json-file", settings.json_file), ("--html", settings.html)):
        if path is not None and path.is_dir():
            raise UsageError(f"{flag}: is a directory")
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{flag}: there is no directory to write it to")


def _write_files(settings: EvaluateSettings, outcome: Outcome) -> None:
    if settings.json_file is not None:
        text = json.dumps(outcome.to_json(), indent=2, ensure_ascii=False) + "\n"
        _write("--json-file", settings.json_file, text)
    if settings.html is not None:
        _write("--html", settings.html, outcome.page())


def _write(flag: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{flag}: {storage_error('cannot be written', error)}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
