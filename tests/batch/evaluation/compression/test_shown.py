"""The table and the plot of an evaluation of compressors, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from latentwire_batch.evaluation.compression import measure
from latentwire_batch.evaluation.compression.plot import Point, text_plot
from support.batch.evaluating import Compare, latents, write_dataset


def test_points_stand_at_their_bytes_and_quality() -> None:
    points = [Point("a", 1000, 1.0), Point("b", 10, 0.0), Point("c", 100, 0.5)]
    name, *lines = text_plot(points, "gap")
    assert name == "gap"
    found = {
        mark: (row, line.index(mark) - 10)
        for row, line in enumerate(lines)
        for mark in "abc"
        if mark in line.partition("|")[2]
    }
    assert found == {"a": (0, 63), "c": (7, 32), "b": (15, 0)}
    labels = [line.partition("|")[0].strip() for line in lines if "|" in line]
    # The label of the middle is the value of its line.
    assert {row: text for row, text in enumerate(labels) if text} == {
        0: "1.00",
        7: "0.53",
        15: "0.00",
    }
    assert lines[-1].split()[0] == "10"
    assert lines[-1].split()[-1] == "1,000"
    assert max(map(len, lines)) <= 80


def test_points_that_meet_are_one_mark() -> None:
    lines = text_plot([Point("a", 10, 1.0), Point("b", 10, 1.0), Point("c", 20, 2.0)], "gap")
    assert sum("+" in line for line in lines[:17]) == 1
    assert not any("a" in line or "b" in line for line in lines[1:17])


@pytest.mark.parametrize("points", [[], [Point("a", 7, 0.5)], [Point("a", 7, 0.5)] * 2])
def test_few_points_are_drawn(points: list[Point]) -> None:
    lines = text_plot(points, "gap")
    assert len(lines) == (19 if points else 0)


def test_the_terminal_shows_one_table_in_80_columns(compare: Compare, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d.parquet", latents(5))
    done = compare(dataset, ["first:1", "full@int4-unrotated"])
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in done.out
    assert sum(line.startswith("compressor") for line in lines) == 1
    for name in ("a full", "b first:1", "c full@int4-unrotated"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert "1 - relative error" in lines


def test_a_wide_terminal_shows_one_table(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    dataset = write_dataset(tmp_path / "d.parquet", latents(5))
    done = compare(dataset, ["first:1"])
    # Bytes and times, and the rest.
    assert sum(line.startswith("compressor") for line in done.out.splitlines()) == 2


@pytest.mark.parametrize("stop_at", ["measuring", "retrieval"])
def test_ctrl_c_shows_what_was_measured(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    dataset = write_dataset(tmp_path / "d.parquet", latents(6))
    estimate, calls = measure._estimate, 0
    stop = 2 * 3 if stop_at == "measuring" else 2 * (6 + 3)

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)
        return estimate(*args)

    monkeypatch.setattr(measure, "_estimate", interrupted)
    done = compare(dataset, ["first:1"])
    assert done.status == 130, done.err
    assert "interrupted; the numbers are of" in done.err
    assert done.report["is_complete"] is False
    found = done.row("first:1")
    assert found["relative_error"] > 0
    if stop_at == "measuring":
        assert 3 <= done.report["num_tasks"] < 6
        assert found["recall"] is None
    else:
        assert done.report["num_tasks"] == 6
        assert found["recall"] is not None
