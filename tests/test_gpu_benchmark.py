"""The benchmark for GPUs runs on a CPU, in an environment for the engine alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# `None` in sys.modules makes an import fail as if the package were not installed.
RUN = """
import runpy, sys
absent = ["fastapi", "starlette", "pydantic", "pydantic_settings", "pyarrow", "rich", "latentwire"]
sys.modules |= dict.fromkeys(absent)
sys.argv = ["gpu", "--tiny", "--device", "cpu", "--dtype", "fp32"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.slow
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
