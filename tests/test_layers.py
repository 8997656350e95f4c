"""What the import contracts in `pyproject.toml` cannot say: which imports run, and when."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "datasets",
    "fastapi",
    "latentwire_batch",
    "latentwire_service",
    "pyarrow",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
}
IMPORT_EVERY_MODULE = """
import importlib, pkgutil, sys
import latentwire

for module in pkgutil.walk_packages(latentwire.__path__, "latentwire."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sys.modules)
"""


def test_importing_any_module_of_the_client_imports_nothing_heavy() -> None:
    # A function may import torch when it is called: `to_torch()` is for callers who have it.
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERY_MODULE], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "latentwire.plan_latent" in imported
    assert imported & HEAVY == set()
