"""A service over one of the tests' backends, for the modules that need no other.

The fixtures import the service when they run, not when this file is loaded: the engine's tests lie
below it, and they run without FastAPI, pydantic and pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.backends import Faults
    from support.gate import Gate
    from support.live_server import LiveServer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("backends")
    if marker is not None and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", marker.args, indirect=True, scope="module")


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the backend that the module's servers have."""
    return str(getattr(request, "param", "local"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Path:
    """The model; the fake backend only takes its name."""
    if backend == "fake":
        return Path("tiny")
    from support.tiny_models import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def start_server(
    folder: Path, backend: str, faults: Faults | None = None, **changes: Any
) -> LiveServer:
    from latentwire_service.settings import Settings
    from support.backends import BACKENDS, Faults
    from support.live_server import LiveServer
    from support.requests import MAX_BODY_BYTES

    given: dict[str, Any] = {"model": str(folder), "max_slots": 4, "max_body_bytes": MAX_BODY_BYTES}
    return LiveServer(Settings(**(given | changes)), BACKENDS[backend], faults or Faults())


@pytest.fixture(scope="module")
def server(folder: Path, backend: str) -> Iterator[LiveServer]:
    live = start_server(folder, backend)
    yield live.wait_ready()
    live.close()


@pytest.fixture
def start(folder: Path, backend: str) -> Iterator[Callable[..., LiveServer]]:
    """Start a server of the test's own: `start(faults, **settings)`."""
    started: list[LiveServer] = []

    def start_one(faults: Faults | None = None, **changes: Any) -> LiveServer:
        started.append(start_server(folder, backend, faults, **changes))
        return started[-1]

    yield start_one
    for live in started:
        live.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Open at the end of the test at the latest."""
    from support.gate import Gate

    held = Gate()
    yield held
    held.may_pass.set()
