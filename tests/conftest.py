"""Rules for every test: no network, no settings from outside, no blocked event loop."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

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
    """Put modules with slow tests first: then all processes are busy until the last tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LATENTWIRE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


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
