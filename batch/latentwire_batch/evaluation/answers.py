"""Whether a receiver's text ends with the right answer: a number or a text. Pure, but for files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from latentwire_batch.dataset.reader import stored_rows
from latentwire_batch.errors import InputError
from latentwire_batch.evaluation.samples import EvaluationSet
from latentwire_batch.tasks.arrow_files import input_errors
from latentwire_batch.tasks.reader import read_records
from latentwire_batch.tasks.rows import RowFields

# A minus between two numbers is no sign.
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)-?\.\d+")
_UNITS = "$€£%"
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_LEAD = re.compile(r"^.*\banswer\b(?:\s+is\b)?\s*[:=]?\s*", re.IGNORECASE | re.DOTALL)
# Solutions of GSM8K end with it.
_FINAL_MARK = "####"


def read_answers(
    field: str, file: Path | None, id_field: str, evaluation_set: EvaluationSet
) -> dict[str, str]:
    """Return the expected answers of the held-out tasks, by their ids.

    Args:
        field: that holds the answer.
        file: that has the field; None: the dataset itself.
        id_field: of the file.
        evaluation_set: the tasks.

    Raises:
        InputError: the field is missing, or the file cannot be read.
    """
    holds = evaluation_set.split.holds
    found: dict[str, str] = {}
    try:
        if file is None:
            for row in stored_rows(evaluation_set.files, [field]):
                _keep(found, row.text.task_id, row.extras[field])
        else:
            for task_id, value in _file_answers(file, field, id_field):
                _keep(found, task_id, value)
    except InputError as error:
        flag = "--answers" if file is None else "--answers-file"
        raise InputError(f"{flag}: {'the dataset ' if file is None else ''}{error}") from error
    found = {task_id: answer for task_id, answer in found.items() if holds(task_id)}
    if not found:
        raise InputError(f"--answers: no held-out task has an answer in {field!r}")
    return found


def is_right(text: str, expected: str) -> bool:
    """Whether a generated text ends with the expected answer.

    Args:
        text: of the receiver. The last number in it counts, or for an answer that is no number: the
            whole text, its last line, what is in its last box, or what follows the word answer.
        expected: a number, a text, or a solution with the answer after `####`.
    """
    wanted = expected.rpartition(_FINAL_MARK)[2].strip()
    number = _NUMBER.fullmatch(wanted.strip(_UNITS))
    if number is not None:
        numbers = _NUMBER.findall(text)
        return bool(numbers) and _value(numbers[-1]) == _value(number[0])
    return _plain(wanted) in {_plain(each) for each in _endings(text)}


def _endings(text: str) -> Iterator[str]:
    yield text
    last = text.strip().rpartition("\n")[2]
    yield last
    yield _LEAD.sub("", last, count=1)
    boxed = _BOXED.findall(text)
    if boxed:
        yield boxed[-1]


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .!*`'\"$").casefold()


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _keep(found: dict[str, str], task_id: str, value: object) -> None:
    if value is not None and str(value).strip():
        found[task_id] = str(value)


def _file_answers(file: Path, field: str, id_field: str) -> Iterator[tuple[str, object]]:
    fields = RowFields(field, None, id_field)
    with input_errors():
        for index, record in enumerate(read_records(file, fields)):
            if not isinstance(record, Mapping):
                raise InputError(f"row {index}: is not an object")
            yield _entry(record, index, field, id_field)


def _entry(record: Mapping[str, Any], index: int, field: str, id_field: str) -> tuple[str, object]:
    missing = [name for name in (field, id_field) if name not in record]
    if missing:
        raise InputError(f"row {index}: has no field {missing[0]!r}")
    return str(record[id_field]), record[field]
