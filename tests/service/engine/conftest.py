"""The engine's tests run on one device; see `support.device`."""

from __future__ import annotations

import pytest

from support.device import DEVICE, DTYPE, is_missing


def pytest_report_header() -> str:
    where = f"engine tests on {DEVICE} in {DTYPE}"
    return (
        f"{where}: this machine has no such device, so they are skipped" if is_missing() else where
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE.type != "cuda":
        return
    for item in items:
        if "tests/service/engine" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if is_missing():
                item.add_marker(pytest.mark.skip(reason=f"no {DEVICE} device"))
