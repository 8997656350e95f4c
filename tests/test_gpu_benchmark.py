"""The benchmark for GPUs runs on a CPU, with the engine's dependencies alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import gpu

from latentwire_service.engine.hf.model_runner import DecodeShape

ROOT = Path(__file__).parent.parent

# `None` in sys.modules makes an import fail as if the package were not installed.
RUN = """
import runpy, sys
absent = ["fastapi", "starlette", "pydantic", "pydantic_settings", "pyarrow", "rich", "latentwire"]
sys.modules |= dict.fromkeys(absent)
sys.argv = ["gpu", "--tiny", "--device", "cpu", "--dtype", "fp32"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


# A compiler runs many times, next to other tests.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_shape_runs_and_the_last_line_is_json() -> None:
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    cells = {(cell["contender"], cell["slots"], cell["rows"]): cell for cell in result["cells"]}
    assert cells.keys() == {
        (contender, slots, rows)
        for slots in (1, 2)
        for contender, rows in (
            ("generate", "none"),
            ("engine", "all"),
            ("engine", "8"),
            ("engine, compiled", "all"),
            ("engine, compiled", "8"),
        )
    }
    for cell in cells.values():
        assert cell["note"] == ""
        assert cell["tokens_per_s"] > 0
        assert cell["bytes_per_step"] > result["weight_bytes_per_step"] > 0
    assert len(table) == len(cells) + 2


class SlowRunner:
    """A compiled runner whose first shape takes 50 s and each other one 10 s, on a fake clock."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.ran: list[DecodeShape] = []

    def warm_up_shapes(self) -> list[DecodeShape]:
        return [DecodeShape(rows, length) for rows in (64, 16) for length in (512, 64)]

    def run_shape(self, shape: DecodeShape) -> None:
        self.clock[0] += 10 if self.ran else 50
        self.ran.append(shape)


@pytest.mark.parametrize(
    ("budget_s", "slots", "expected", "num_shapes"),
    [
        (1000, [64, 16], [True, True], 4),
        # A cell of 10 slots decodes 16 rows, and shapes stay warm.
        (1000, [10, 16], [True, True], 2),
        # The first shape needs 60 s.
        (60, [64, 16], [False, False], 0),
        # After the first shape, less time is left than it took.
        (99, [64, 16], [False, False], 1),
        (115, [64, 16], [True, False], 3),
    ],
)
def test_a_shape_without_time_to_warm_up_is_skipped(
    budget_s: float,
    slots: list[int],
    expected: list[bool],
    num_shapes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    args = gpu.parse(["--tiny", "--device", "cpu", "--budget-s", str(budget_s)])
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda *_: 1.0)
    bench, runner = gpu.Bench(args), SlowRunner(clock)
    assert [bench._warm_up(runner, number) for number in slots] == expected
    assert len(runner.ran) == num_shapes
