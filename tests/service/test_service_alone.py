"""The service runs over any backend: the HTTP contract's tests need no model and no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# `None` in sys.modules makes an import fail as if the package were not installed.
RUN = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "tokenizers", "accelerate", "gguf"])
import pytest

class OnceEach:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        first = {item.function: item for item in reversed(items)}
        items[:] = [item for item in items if first[item.function] is item]

sys.exit(pytest.main(["-k", "not local", "-m", "not slow", "-p", "no:cacheprovider",
    "tests/service/test_model_service.py", "tests/service/test_lifecycle.py",
    "tests/service/api"], plugins=[OnceEach()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_http_contract_is_tested_without_torch() -> None:
    """Each test runs with its first parameters: with all of them, it runs where torch is."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_model_service", "test_lifecycle", "test_http", "test_wire_formats"):
        assert f"{name}.py ." in done.stdout
