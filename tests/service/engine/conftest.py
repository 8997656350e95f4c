"""The engine's tests run on one device; see `support.engine.device`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from support.engine.device import DEVICE, DTYPE, is_missing

HAS_HYPOTHESIS = importlib.util.find_spec("hypothesis") is not None


def pytest_report_header() -> list[str]:
    where = f"engine tests on {DEVICE} in {DTYPE}"
    if is_missing():
        where += ": this machine has no such device, so they are skipped"
    return [where] if HAS_HYPOTHESIS else [where, "without hypothesis: no property-based tests"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave property-based tests out where hypothesis is not installed: they test no device."""
    if HAS_HYPOTHESIS or collection_path.suffix != ".py":
        return None
    return "\nfrom hypothesis import " in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE.type != "cuda":
        return
    for item in items:
        if "tests/service/engine" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if is_missing():
                item.add_marker(pytest.mark.skip(reason=f"no {DEVICE} device"))
