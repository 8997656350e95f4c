"""One row of the input: the fields of a record that make it, and the records that are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.turns import CONVERSATION_FIELDS, turn_text

# Above this, different whole numbers become the same float.
_MAX_EXACT_FLOAT = 2.0**53 - 1
_MAX_NAMES = 10
# In the digest, in place of a length: no text is that long.
_SET_ASIDE_MARK = b"\xff" * 8


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
        conversations_index: turn of `conversations` or `messages` whose text is the task, counted
            from 0; None: use task_field.
        id_field: name of the field with the id; any record may lack it.
    """

    task_field: str
    conversations_index: int | None
    id_field: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level fields to read."""
        return (*self.task_columns, self.id_field)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RowFields:
        """Read what `to_json` returned; raises LookupError when a value is missing."""
        index = value.get("conversations_index")
        return cls("" if index is not None else value["task_field"], index, value["id_field"])

    def to_json(self) -> dict[str, Any]:
        """Return the place as JSON values."""
        if self.conversations_index is None:
            return {"task_field": self.task_field, "id_field": self.id_field}
        return {"conversations_index": self.conversations_index, "id_field": self.id_field}

    @property
    def task_columns(self) -> tuple[str, ...]:
        """The top-level fields of which the first present one holds the task."""
        return (self.task_field,) if self.conversations_index is None else CONVERSATION_FIELDS


@dataclass(frozen=True)
class UnusableRow:
    """One row that cannot be planned.

    Attributes:
        index: position in the input, counted from 0.
        reason: in words, with the row or line in front.
        task_id: as of `Row`; the index if the record's own id cannot be used.
    """

    index: int
    reason: str
    task_id: str


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
    name = next((name for name in fields.task_columns if record.get(name) is not None), None)
    if name is None:
        name = next((name for name in fields.task_columns if name in record), None)
    if name is None:
        hint = _held_list(record) if fields.conversations_index is None else ""
        raise InputError(f"{missing_field(fields, list(record), index)}{hint}")
    place, task = f"field {name!r}", record[name]
    if fields.conversations_index is not None:
        try:
            place, task = turn_text(name, task, fields.conversations_index)
        except InputError as error:
            raise InputError(f"row {index}: {error}") from error
    text = _checked_text(task, f"row {index}: {place}")
    return Row(index, _task_id(record.get(fields.id_field), index, fields.id_field), text)


def unusable_row(record: Any, index: int, fields: RowFields, reason: str) -> UnusableRow:
    """Describe a record that `extract_row` refused.

    Args:
        record: decoded, or anything where it could not be decoded.
        index: of the row.
        fields: which fields make a row.
        reason: in words.
    """
    try:
        value = record.get(fields.id_field) if isinstance(record, dict) else None
        task_id = _task_id(value, index, fields.id_field)
    except InputError:
        task_id = str(index)
    return UnusableRow(index, reason, task_id)


def missing_field(fields: RowFields, present: Sequence[str], index: int) -> InputError:
    """Word the error of a record without a task, with the fields that it has."""
    names = " and ".join(repr(name) for name in fields.task_columns)
    kind = "field" if len(fields.task_columns) == 1 else "fields"
    verb = "is" if len(fields.task_columns) == 1 else "are"
    shown = ", ".join(repr(name) for name in present[:_MAX_NAMES])
    shown += ", ..." if len(present) > _MAX_NAMES else ""
    text = f"row {index}: {kind} {names} {verb} missing; the row has {shown or 'no fields'}"
    if fields.conversations_index is None and set(CONVERSATION_FIELDS) & set(present):
        text += "; --conversations-index takes one turn of a conversation"
    elif fields.conversations_index is None and present:
        text += "; --task-field names the field with the task"
    return InputError(text)


def _held_list(record: Mapping[str, Any]) -> str:
    """Name the field whose list may be what the user means; empty when there is none."""
    for name, value in record.items():
        is_list = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
        if is_list and name not in CONVERSATION_FIELDS:
            return f"; field {name!r} holds a list: to plan its objects, pass that list by itself"
    return ""


def identify(rows: Iterable[Row | UnusableRow]) -> DataIdentity:
    """Read all rows once and identify the input by them."""
    digest = hashlib.sha256()
    num_rows = 0
    for row in rows:
        num_rows += 1
        if isinstance(row, UnusableRow):
            digest.update(_SET_ASIDE_MARK)
            continue
        for text in (row.task_id, row.task):
            encoded = text.encode()
            # The length in front distinguishes ("ab", "c") from ("a", "bc").
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return DataIdentity(num_rows=num_rows, sha256=digest.hexdigest())


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
