"""The engine's tests need no part of the service around it, nor of the dataset tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# `None` in sys.modules makes an import fail as if the package were not installed.
COLLECT = """
import sys
absent = ["fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client", "pyarrow"]
absent += ["datasets", "rich", "opentelemetry", "blockbuster"]
sys.modules |= dict.fromkeys(absent)
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "tests/service/engine", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
def test_the_engines_tests_are_collected_without_fastapi_and_pyarrow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_engine_against_generate.py" in done.stdout
