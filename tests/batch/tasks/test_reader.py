from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import Row, RowFields, identify

FIELDS = RowFields(task_field="task", conversations_index=None, id_field="id")
TURNS = RowFields(task_field="task", conversations_index=1, id_field="id")
RECORDS: list[dict[str, Any]] = [
    {
        "id": f"t{i}",
        "task": f"Task {i}: 'ü' ☀ {'x' * i}",
        "conversations": [{"from": "a", "value": f"q{i}"}, {"from": "b", "value": f"a{i}"}],
    }
    for i in range(700)
]


def as_json(path: Path) -> Path:
    path.write_text(json.dumps(RECORDS, indent=1))
    return path


def as_jsonl(path: Path) -> Path:
    path.write_text("\n\n".join(json.dumps(record) for record in RECORDS))
    return path


def as_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=300)
    return path


def as_saved(path: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path), num_shards=3)
    return path


FORMATS = [as_json, as_jsonl, as_parquet, as_saved]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_rows(write: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = list(TaskSource(write(tmp_path / "data"), FIELDS).rows())
    assert rows == [Row(i, record["id"], record["task"]) for i, record in enumerate(RECORDS)]


@pytest.mark.parametrize("write", FORMATS)
def test_a_turn_of_a_conversation_can_be_the_task(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    rows = list(TaskSource(write(tmp_path / "data"), TURNS, limit=5).rows())
    assert [row.task for row in rows] == ["a0", "a1", "a2", "a3", "a4"]


@pytest.mark.parametrize("write", FORMATS)
def test_a_missing_id_becomes_the_index(write: Callable[[Path], Path], tmp_path: Path) -> None:
    fields = RowFields("task", None, id_field="key")
    rows = TaskSource(write(tmp_path / "data"), fields, limit=3).rows()
    assert [row.task_id for row in rows] == ["0", "1", "2"]


@pytest.mark.parametrize("write", FORMATS)
def test_a_missing_task_field_is_named(write: Callable[[Path], Path], tmp_path: Path) -> None:
    fields = RowFields("goal", None, "id")
    with pytest.raises(InputError, match="row 0: field 'goal' is missing"):
        list(TaskSource(write(tmp_path / "data"), fields).rows())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a"}, "row 1: field 'task' is missing"),
        ({"task": ""}, "row 1: field 'task' is empty"),
        ({"task": None}, "row 1: field 'task' is not text but NoneType"),
        ({"task": 3}, "row 1: field 'task' is not text but int"),
        ({"task": "\ud800"}, "row 1: field 'task' is not valid Unicode"),
        ({"task": "x", "id": [1]}, "row 1: field 'id' is neither text nor a whole number"),
        ({"task": "x", "id": True}, "row 1: field 'id' is neither text nor a whole number"),
        ({"task": "x", "id": 3.5}, "row 1: field 'id' is neither text nor a whole number"),
        ({"task": "x", "id": 2.0**53}, "row 1: field 'id' is neither text nor a whole number"),
        ({"task": "x", "id": math.inf}, "row 1: field 'id' is neither text nor a whole number"),
        ([1], "row 1: not an object with fields but list"),
    ],
)
@pytest.mark.parametrize("is_list", [True, False])
def test_an_unusable_row_is_named(
    record: object, message: str, is_list: bool, tmp_path: Path
) -> None:
    records = [{"task": "fine"}, record]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records) if is_list else "\n".join(map(json.dumps, records)))
    with pytest.raises(InputError, match=message):
        list(TaskSource(path, FIELDS).rows())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task": "a"}\n{"task": ', "line 2 is not JSON"),
        ('[{"task": "a"}, {"task": ', "row 1: not JSON"),
        ('[{"task": "a"}', "the end of the file where ',' was expected"),
        ('[{"task": "a"} {"task": "b"}]', "'{' where ',' was expected"),
        ('[{"task": "a"}] []', "more text follows the end"),
        ("PAR1 not really", "cannot be decoded"),
        ('{"task": "\udcff"}', "cannot be decoded"),
        ("[" * 100_000, "^row 0: lists or objects are nested too deeply"),
        (
            '[{"task": "a"}, ' + '{"task":' * 100_000,
            "^row 1: lists or objects are nested too deeply",
        ),
        ('\n{"task":' + "[" * 100_000, "^line 2: lists or objects are nested too deeply"),
        (f'{{"task": "a", "id": {"9" * 5000}}}', "^line 1: a number has too many digits"),
        (f'[{{"task": "a", "id": {"9" * 5000}}}]', "^row 0: a number has too many digits"),
    ],
)
def test_broken_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        list(TaskSource(path, FIELDS).rows())


@pytest.mark.parametrize("value", [1, 1.0, "1"])
def test_an_id_that_is_a_whole_number_is_written_without_a_fraction(
    value: object, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"task": "a", "id": value}))
    assert list(TaskSource(path, FIELDS).rows()) == [Row(0, "1", "a")]


def test_ids_that_pandas_made_floats_are_numbers_with_gaps(tmp_path: Path) -> None:
    ids = pa.array([7.0, math.nan, None, -3.0], type=pa.float64())
    pq.write_table(pa.table({"task": ["a", "b", "c", "d"], "id": ids}), tmp_path / "data")
    rows = TaskSource(tmp_path / "data", FIELDS).rows()
    assert [row.task_id for row in rows] == ["7", "1", "2", "-3"]


def test_a_byte_order_mark_is_not_content(tmp_path: Path) -> None:
    for text in ('[{"task": "a"}]', '{"task": "a"}'):
        (tmp_path / "data").write_text(text, encoding="utf-8-sig")
        assert list(TaskSource(tmp_path / "data", FIELDS).rows()) == [Row(0, "0", "a")]


@pytest.mark.parametrize("is_list", [True, False])
def test_json_is_read_as_python_reads_it(is_list: bool, tmp_path: Path) -> None:
    # NaN is no id, a repeated field counts once, and whole numbers are exact at any size.
    records = [
        '{"task": "a", "id": NaN, "score": -Infinity}',
        '{"task": "x", "task": "b", "id": 18446744073709551616}',
        '{"task": "c", "id": "\\ud83d\\ude00", "other": "\\ud800"}',
    ]
    (tmp_path / "data").write_text(f"[{','.join(records)}]" if is_list else "\n".join(records))
    assert list(TaskSource(tmp_path / "data", FIELDS).rows()) == [
        Row(0, "0", "a"),
        Row(1, "18446744073709551616", "b"),
        Row(2, "\U0001f600", "c"),
    ]


def test_a_damaged_list_of_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not a directory written by"):
        list(TaskSource(tmp_path, FIELDS).rows())


def test_a_dataset_of_splits_says_which_folders_to_give(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(RECORDS[:2])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="one of: train, test"):
        list(TaskSource(tmp_path / "d", FIELDS).rows())


def test_identity_depends_on_content_and_order_only(tmp_path: Path) -> None:
    ways = [identify(TaskSource(w(tmp_path / w.__name__), FIELDS).rows()) for w in FORMATS]
    assert ways == [ways[0]] * 4
    assert ways[0].num_rows == 700
    rows = [Row(0, "ab", "c"), Row(1, "d", "e")]
    assert identify(rows) != identify(rows[::-1])
    assert identify([Row(0, "ab", "c")]) != identify([Row(0, "a", "bc")])


def test_an_absent_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(TaskSource(tmp_path / "nowhere", FIELDS).rows())
