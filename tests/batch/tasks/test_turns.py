from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields

CHAT = [
    {"role": "system", "content": "You plan."},
    {"role": "user", "content": "Tidy up."},
    {"role": "assistant", "content": "Yes."},
]
OLD_CHAT = [{"from": turn["role"], "value": turn["content"]} for turn in CHAT]
PARTS = [{"type": "text", "text": "Tidy "}, {"type": "text", "text": "up."}]


def as_lines(path: Path, records: list[Any]) -> None:
    path.write_text("\n".join(map(json.dumps, records)))


def as_parquet(path: Path, records: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


def tasks(path: Path, index: int | None) -> list[str]:
    return [row.task for row in TaskSource(path, RowFields("task", index, "id")).rows()]


@pytest.mark.parametrize("write", [as_lines, as_parquet])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT},
        {"conversations": OLD_CHAT},
        {"conversations": CHAT},
        {"messages": OLD_CHAT},
        {"messages": CHAT, "conversations": None, "task": 3},
        {"messages": [{"role": "system", "content": []}, {"role": "user", "content": PARTS}]},
        {"messages": [CHAT[0], {"role": "user", "content": "Tidy up.", "value": None}]},
        {"messages": [{"role": "system"}, {"content": {"type": "text", "text": "Tidy up."}}]},
        {"messages": [{"role": "s"}, {"content": [{"type": "input_text", "text": "Tidy up."}]}]},
    ],
)
def test_a_turn_of_either_notation_is_the_task(
    write: Callable[[Path, list[Any]], None], record: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "data", [record])
    assert tasks(tmp_path / "data", 1) == ["Tidy up."]


def test_both_notations_in_one_file_are_read(tmp_path: Path) -> None:
    records = [{"messages": CHAT, "conversations": None}, {"conversations": OLD_CHAT}]
    as_parquet(tmp_path / "data", records)
    assert tasks(tmp_path / "data", 1) == ["Tidy up."] * 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"task": "a"}, "'conversations' and 'messages' are missing; the row has 'task'"),
        ({"messages": CHAT[:1]}, "'messages' has 1 turns, counted from 0, and none at 1"),
        ({"messages": "hello"}, "'messages' is not a list"),
        ({"messages": [{}, {}]}, r"messages\[1\] has neither 'value' nor 'content'"),
        ({"messages": [1, 2]}, r"messages\[1\] has neither"),
        ({"messages": ["a", "b"]}, r"neither 'value' nor 'content', but str alone"),
        (
            {"messages": [{}, {"speaker": "A", "text": "Tidy up."}]},
            "neither 'value' nor 'content', but 'speaker', 'text'",
        ),
        ({"messages": [{}, {"content": 3}]}, r"messages\[1\]\['content'\] is not text but int"),
        ({"messages": [{}, {"content": ""}]}, r"messages\[1\]\['content'\] is empty"),
        (
            {"messages": [{}, {"content": [*PARTS, {"type": "image_url"}]}]},
            "a part that is not text but 'image_url'",
        ),
    ],
)
def test_a_turn_without_text_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    as_lines(tmp_path / "data", [record])
    with pytest.raises(InputError, match=f"row 0: .*{message}"):
        tasks(tmp_path / "data", 1)


@pytest.mark.parametrize("write", [as_lines, as_parquet])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"goal": "a", "key": 1}, "the row has 'goal', 'key'; --task-field names"),
        ({"id": "a", "messages": CHAT}, "the row has 'id', 'messages'; --conversations-index"),
        ({f"f{i:02}": 1 for i in range(12)}, r"'f09', \.\.\.;"),
    ],
)
def test_a_missing_task_names_the_fields_that_are_there(
    write: Callable[[Path, list[Any]], None], record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "data", [record])
    with pytest.raises(InputError, match=f"field 'task' is missing; .*{message}"):
        tasks(tmp_path / "data", None)
