"""Output directories that an earlier version left: their files are written here byte for byte."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from latentwire_batch.dispatch.seeds import EARLIER_ROW_SEED_BITS, Seeds, row_seed
from latentwire_batch.output.layout import OutputLayout
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_answers import latent, num_tokens, plan_text
from support.batch.stub_replica import StubReplica

SETTINGS = """\
{
  "data": {
    "num_rows": 40,
    "sha256": "%s"
  },
  "k": null,
  "prompt": {
    "prompt_template": "Please provide a general plan to solve this task.\\nThe task is: {task}",
    "chat_template": "auto"
  },
  "sampling": {
    "max_new_tokens": 12,
    "do_sample": true,
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 0,
    "stop": []
  },
  "seed": 7,
  "model": {
    "model": "stub",
    "revision": null,
    "hidden_size": 8,
    "dtype": "float32"
  }
}
"""
MANIFEST = """\
{
  "format": 1,
  "model": {
    "model": "stub",
    "revision": null,
    "hidden_size": 8,
    "dtype": "float32"
  },
  "latent": {
    "layer": "last",
    "normed": true,
    "alignment": "predicts"
  },
  "settings": {
    "data": {
      "num_rows": 40,
      "sha256": "%s"
    },
    "k": null,
    "prompt": {
      "prompt_template": "Please provide a general plan to solve this task.\\nThe task is: {task}",
      "chat_template": "auto"
    },
    "sampling": {
      "max_new_tokens": 12,
      "do_sample": true,
      "temperature": 1.0,
      "top_p": 0.9,
      "top_k": 0,
      "stop": []
    },
    "seed": 7
  },
  "counts": {
    "rows": 40,
    "finished": 39,
    "failed": 1,
    "prompt_tokens": 195,
    "completion_tokens": %d,
    "latent_steps": %d,
    "finish_reasons": {
      "stop": 39
    }
  },
  "replicas": {
    "count": 1,
    "devices": [
      "cpu"
    ],
    "versions": [
      "0"
    ]
  },
  "elapsed_s": 3.25,
  "versions": {
    "latentwire": "0.1.0",
    "numpy": "2.0.0",
    "pyarrow": "17.0.0",
    "python": "3.11.0"
  }
}
"""


def digest_of(rows: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for text in (text for row in rows for text in row):
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return digest.hexdigest()


def record(kind: int, row: int, meta: Mapping[str, object], body: bytes = b"") -> bytes:
    text = json.dumps(meta, ensure_ascii=False).encode()
    checksum = zlib.crc32(text + body)
    fields = struct.pack("<4sBxxxIqQI", b"LWR1", kind, len(text), row, len(body), checksum)
    return fields + struct.pack("<I", zlib.crc32(fields)) + text + body


def finished(index: int, task_id: str, task: str) -> bytes:
    seed = row_seed(7, index, EARLIER_ROW_SEED_BITS)
    count = num_tokens(task, seed, 12)
    meta = {
        "task": task,
        "task_id": task_id,
        "plan": plan_text(task, seed),
        "num_steps": count,
        "prompt_tokens": 5,
        "completion_tokens": count,
        "finish_reason": "stop",
    }
    return record(1, index, meta, latent(task, seed, count, 8).astype("<f4").tobytes())


@pytest.fixture
def left_behind(output: Path, tasks: Path) -> OutputLayout:
    """What a killed run leaves: two ranks' logs, a failed row, the time spent, a torn record."""
    rows, layout = tasks_of(tasks), OutputLayout(output)
    layout.partial.mkdir(parents=True)
    (output / ".partial" / "lock").touch()
    (output / ".partial" / "settings.json").write_text(SETTINGS % digest_of(rows))
    failed = {"task_id": "t4", "code": "prompt-too-long", "message": "too long"}
    log = [finished(index, *rows[index]) for index in (0, 6, 2)]
    log += [record(2, 4, failed), record(3, 0, {"elapsed_s": 100.5}), finished(8, *rows[8])[:-3]]
    (output / ".partial" / "rows.log").write_bytes(b"".join(log))
    other = [finished(index, *rows[index]) for index in (1, 3)]
    (output / ".partial" / "rows-1.log").write_bytes(b"".join(other))
    return layout


def test_an_unfinished_output_resumes(
    left_behind: OutputLayout, collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    ended = collect(replicas=[stub])
    assert ended.status == 3
    assert "resuming: 6 of 40 rows are done" in ended.stderr
    assert sorted(map(str, stub.received_ids())) == sorted(
        f"t{i}" for i in range(40) if i not in (0, 6, 2, 4, 1, 3)
    )
    assert_complete(output, tasks_of(tasks), without=(4,), row_seed_bits=63)
    assert not left_behind.partial.exists()
    assert json.loads((output / "manifest.json").read_text())["elapsed_s"] > 100.5


def test_an_unfinished_output_with_other_settings_is_refused(
    left_behind: OutputLayout, collect: Collect, stub: StubReplica
) -> None:
    before = {path: path.read_bytes() for path in left_behind.partial.iterdir()}
    ended = collect("--top-k", "3", "--seed", "8", replicas=[stub])
    assert ended.status == 2
    assert "sampling.top_k was 0, now 3; seed was 7, now 8" in ended.stderr
    assert {path: path.read_bytes() for path in left_behind.partial.iterdir()} == before


def test_the_settings_file_has_the_earlier_fields_and_the_newer_ones(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.die_after = 5
    flags = ("--replica-timeout", "0.2", "--date", "2031-12-09")
    assert collect(*flags, replicas=[stub]).status == 1
    written = (output / ".partial" / "settings.json").read_text()
    expected = json.loads(SETTINGS % digest_of(tasks_of(tasks)))
    expected |= {"columns": [], "input": {"task_field": "task", "id_field": "id"}}
    expected["model"] |= {"engine": "latentwire", "generation_defaults": {}}
    expected["prompt"]["date"] = "2031-12-09"
    assert json.loads(written) == expected | {"row_seed_bits": 53}


def test_a_damaged_settings_file_is_named(
    left_behind: OutputLayout, collect: Collect, stub: StubReplica
) -> None:
    left_behind.settings.write_text('{"k": null}')
    ended = collect(replicas=[stub])
    assert ended.status == 1
    assert "the output's settings are damaged" in ended.stderr
    left_behind.settings.write_text("{")
    assert "settings.json is damaged" in collect(replicas=[stub]).stderr


def test_failed_rows_of_a_finished_output_are_retried(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = tasks_of(tasks)
    stub.behaviour.task_faults = {rows[3][1]: [422]}
    with monkeypatch.context() as earlier:
        seeds = partial(Seeds, row_seed_bits=EARLIER_ROW_SEED_BITS)
        earlier.setattr("latentwire_batch.collect.Seeds", seeds)
        assert collect(replicas=[stub]).status == 3
    num_steps = sum(
        num_tokens(rows[i][1], row_seed(7, i, EARLIER_ROW_SEED_BITS), 12)
        for i in range(40)
        if i != 3
    )
    (output / "manifest.json").write_text(MANIFEST % (digest_of(rows), num_steps, num_steps))
    assert collect("--retry-failed", replicas=[stub]).status == 0
    assert_complete(output, rows, row_seed_bits=63)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["counts"]["prompt_tokens"] == 200
    assert manifest["elapsed_s"] > 3.25
    # Earlier versions stated no digests of the files.
    assert {"data.parquet"} < manifest.pop("files").keys()
    assert list(manifest) == list(json.loads(MANIFEST % ("", 0, 0)))


def test_an_unfinished_output_has_no_compressors(
    left_behind: OutputLayout, collect: Collect, stub: StubReplica
) -> None:
    before = {path: path.read_bytes() for path in left_behind.partial.iterdir()}
    ended = collect("--compressor", "first:2", replicas=[stub])
    assert ended.status == 2
    assert "hidden_state_comp was absent, now first (k 2, sha256 " in ended.stderr
    assert {path: path.read_bytes() for path in left_behind.partial.iterdir()} == before
