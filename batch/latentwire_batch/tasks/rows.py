"""One row of the input: the fields of a record that make it, and the records that are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latentwire_batch.errors import InputError

# Above this, different whole numbers become the same float.
_MAX_EXACT_FLOAT = 2.0**53 - 1


@dataclass(frozen=True)
class Row:
    """One task to plan.

    Attributes:
        index: position in the input, counted from 0.
        task_id: the record's own id as text, or the index if it has none.
        task: the task's text, not empty.
    """

    index: int
    task_id: str
    task: str


@dataclass(frozen=True)
class RowFields:
    """The place of the task and its id in a record.

    Attributes:
        task_field: name of the field with the task's text; not used with conversations.
        conversations_index: turn of `conversations` whose `value` is the task, counted from 0;
            None: use task_field.
        id_field: name of the field with the id; any record may lack it.
    """

    task_field: str
    conversations_index: int | None
    id_field: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level fields to read."""
        task = self.task_field if self.conversations_index is None else "conversations"
        return (task, self.id_field)


@dataclass(frozen=True)
class DataIdentity:
    """Identifies an input by its rows, not by its name or path.

    Attributes:
        num_rows: of the input.
        sha256: hex digest over the ids and tasks, in order.
    """

    num_rows: int
    sha256: str


def extract_row(record: Any, index: int, fields: RowFields) -> Row:
    """Take the task and its id from one decoded record.

    Raises:
        InputError: naming the row and the field, when the task or id cannot be used.
    """
    if not isinstance(record, dict):
        raise InputError(f"row {index}: not an object with fields but {type(record).__name__}")
    if fields.conversations_index is None:
        task = _field(record, fields.task_field, index)
        place = f"field {fields.task_field!r}"
    else:
        task = _turn_value(record, fields.conversations_index, index)
        place = f"field conversations[{fields.conversations_index}]['value']"
    return Row(
        index=index,
        task_id=_task_id(record.get(fields.id_field), index, fields.id_field),
        task=_checked_text(task, f"row {index}: {place}"),
    )


def identify(rows: Iterable[Row]) -> DataIdentity:
    """Read all rows once and identify the input by them."""
    digest = hashlib.sha256()
    num_rows = 0
    for row in rows:
        for text in (row.task_id, row.task):
            encoded = text.encode()
            # The length in front distinguishes ("ab", "c") from ("a", "bc").
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        num_rows += 1
    return DataIdentity(num_rows=num_rows, sha256=digest.hexdigest())


def _field(record: dict[str, Any], name: str, index: int) -> Any:
    if name not in record:
        raise InputError(f"row {index}: field {name!r} is missing")
    return record[name]


def _turn_value(record: dict[str, Any], turn_index: int, index: int) -> Any:
    turns = _field(record, "conversations", index)
    if not isinstance(turns, list):
        raise InputError(f"row {index}: field 'conversations' is not a list")
    if turn_index >= len(turns):
        raise InputError(
            f"row {index}: field 'conversations' has {len(turns)} turns, none at {turn_index}"
        )
    turn = turns[turn_index]
    if not isinstance(turn, dict) or "value" not in turn:
        raise InputError(f"row {index}: field conversations[{turn_index}] has no 'value'")
    return turn["value"]


def _task_id(value: Any, index: int, name: str) -> str:
    # A table in which some rows have no id holds whole numbers as floats, and NaN for no id.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return str(index)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT_FLOAT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"row {index}: field {name!r} is neither text nor a whole number")
    return _checked_text(str(value), f"row {index}: field {name!r}")


def _checked_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place} is not text but {type(value).__name__}")
    if not value:
        raise InputError(f"{place} is empty")
    try:
        # JSON can hold half of a surrogate pair; Arrow and Parquet files cannot.
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place} is not valid Unicode text") from error
    return value
