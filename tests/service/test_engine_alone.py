"""The engine's tests need torch, transformers, numpy, pytest and this repository alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# `None` in sys.modules makes an import fail as if the package were not installed.
COLLECT = """
import sys
absent = ["fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client", "pyarrow"]
absent += ["datasets", "rich", "opentelemetry", "blockbuster", "hypothesis", "gguf", "accelerate"]
absent += ["pydantic", "httpx", "pytest_timeout", "latentwire"]
sys.modules |= dict.fromkeys(absent)
import pytest
options = ["-o", "addopts=--import-mode=importlib", "-W", "default", "-p", "no:cacheprovider"]
sys.exit(pytest.main(["-q", "--collect-only", *options, "tests/service/engine"]))
"""


@pytest.mark.slow
def test_the_engines_tests_are_collected_on_a_bare_gpu_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        cwd=ROOT,
        # Plugins of packages that are absent would fail.
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_engine_against_generate.py" in done.stdout
