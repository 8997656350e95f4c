"""Rules for every test: no network, no settings from outside, no blocked event loop."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Hugging Face's libraries read this when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# torch reads these, here and in child processes: tiny models are slower on two threads than on one,
# and threads that spin at the end of a parallel region keep other processes from the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    # The same examples in every run, and no time limit on one: the machine may be busy.
    # Fewer than Hypothesis's 100: they stay the same, so further ones find nothing in a later run.
    settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have each process begin with modules that have slow tests, so that all end at the same time.

    Each process of pytest-xdist gets an equal part of the list, and then takes over what others
    have left at their ends.
    """
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    slow: list[list[pytest.Item]] = []
    fast: list[list[pytest.Item]] = []
    for module in modules.values():
        is_slow = any(item.get_closest_marker("slow") is not None for item in module)
        (slow if is_slow else fast).append(module)
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    parts = [[item for module in slow[i::count] for item in module] for i in range(count)]
    for module in fast:
        min(parts, key=len).extend(module)
    items[:] = [item for part in parts for item in part]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LATENTWIRE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Take away the root logger's output that a test configured: its stream ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def blocking_calls() -> Iterator[list[str]]:
    """Names of calls that blocked an event loop, in the current test."""
    # An environment for the engine alone has neither the detector nor an event loop.
    if importlib.util.find_spec("blockbuster") is None:
        yield []
        return
    from support.event_loop import blocking_calls_raise

    with blocking_calls_raise() as names:
        yield names


@pytest.fixture(autouse=True)
def _event_loop_is_never_blocked(blocking_calls: list[str]) -> Iterator[None]:
    blocking_calls.clear()
    yield
    assert blocking_calls == []
