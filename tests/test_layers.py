"""What the import contracts in `pyproject.toml` cannot say: which imports run, and when."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES, MAX_MODULES = 400, 16

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


def modules() -> list[Path]:
    """Every module of the project, without environments and outputs in the checkout."""
    folders = ("client", "service", "batch", "tests", "benchmarks", "tools", "examples")
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


def test_no_module_is_too_long() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in modules()}
    assert lengths
    assert {file.name: n for file, n in lengths.items() if n > MAX_LINES} == {}


def test_no_folder_is_crowded() -> None:
    counts = Counter(file.parent for file in modules() if file.name != "__init__.py")
    # The client stays flat: its modules are one layer.
    del counts[ROOT / "client" / "latentwire"]
    assert {folder.name: n for folder, n in counts.items() if n > MAX_MODULES} == {}
