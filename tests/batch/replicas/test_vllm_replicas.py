"""`latentwire collect --engine vllm`, killed once and started again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import latentwire
from support.engine.vllm_models import ENGINE_ARGS, MAX_MODEL_LEN, NEEDS_VLLM, save

pytestmark = [pytest.mark.vllm, NEEDS_VLLM, pytest.mark.timeout(2400)]

NUM_TASKS, MAX_NEW_TOKENS = 8, 150
TOLERANCE = 2e-3


def flags_of(folder: Path, engine: str) -> list[str]:
    model, tasks = folder / "tiny", folder / "tasks.jsonl"
    flags = ["--dataset", str(tasks), "--output-dir", str(folder / engine), "--model", str(model)]
    flags += ["--device", "cpu", "--engine", engine, "--max-model-len", str(MAX_MODEL_LEN)]
    # One after the other: some are finished when the command is killed, and others are not.
    flags += ["--max-slots", "1", "--max-new-tokens", str(MAX_NEW_TOKENS), "--temperature", "0"]
    flags += ["--chat-template", "none", "--prompt-template", "{task}", "--columns", "token_ids"]
    if engine == "vllm":
        for argument in ENGINE_ARGS:
            flags += ["--engine-arg", argument]
    return flags


def start(flags: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "latentwire_batch", *flags], stderr=subprocess.PIPE, text=True
    )


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_collection_over_vllm_that_was_killed_has_the_rows_of_the_other_engine(
    tmp_path: Path,
) -> None:
    width = 128
    save("llama", tmp_path / "tiny")
    letters = "the quick brown fox"
    lines = [f'{{"id": "{i}", "task": "{letters[i : i + 6]}"}}\n' for i in range(NUM_TASKS)]
    (tmp_path / "tasks.jsonl").write_text("".join(lines))
    killed = start(flags_of(tmp_path, "vllm"))
    # The float32 rows of one task.
    while size_of(tmp_path / "vllm") < MAX_NEW_TOKENS * width * 4:
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "vllm" / "manifest.json").exists()

    for engine in ("vllm", "latentwire"):
        again = start(flags_of(tmp_path, engine))
        _, said = again.communicate()
        assert again.returncode == 0, said
        assert ("resum" in said) == (engine == "vllm"), said
    found, wanted = (latentwire.load(tmp_path / engine) for engine in ("vllm", "latentwire"))
    assert len(found) == len(wanted) == NUM_TASKS
    for row, other in zip(found, wanted, strict=True):
        assert (row.task_id, row.task, row.plan) == (other.task_id, other.task, other.plan)
        assert row.extras["token_ids"] == other.extras["token_ids"]
        assert row.hidden_state is not None
        assert other.hidden_state is not None
        np.testing.assert_allclose(row.hidden_state, other.hidden_state, atol=TOLERANCE)
