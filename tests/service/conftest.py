"""A service over one of the tests' backends, for the modules that need no other.

The fixtures import the service when they run, not when this file is loaded: the engine's tests lie
below it, and they run without FastAPI, pydantic and pyarrow.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.backends import Faults
    from support.gate import Gate
    from support.live_server import LiveServer


HAS_VLLM = importlib.util.find_spec("vllm") is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("backends")
    if marker is not None and "backend" in metafunc.fixturenames:
        names = [_with_marks(name) for name in marker.args if name != "vllm" or HAS_VLLM]
        metafunc.parametrize("backend", names, indirect=True, scope="module")


def _with_marks(name: str) -> Any:
    # The first of these tests waits until vLLM has started.
    marks = [pytest.mark.vllm, pytest.mark.timeout(2400)] if name == "vllm" else []
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="session")
def shared_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start vLLM with a tiny model, for all modules."""
    from latentwire_service.vllm_engine.environment import prepare_environment

    prepare_environment(os.environ, "warning")
    from support.engine.vllm_cores import shared_vllm
    from support.tiny_models import save_model

    model = save_model(tmp_path_factory.mktemp("vllm") / "tiny", _config("vllm"))
    with shared_vllm(model):
        yield


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the backend that the module's servers have."""
    name = str(getattr(request, "param", "local"))
    if name == "vllm":
        request.getfixturevalue("shared_vllm")
    return name


def _config(backend: str, **changes: Any) -> Any:
    """The tiny model of a backend."""
    from support.tiny_models import llama_config

    # vLLM's attention on a CPU has kernels for 32 values per head and more.
    return llama_config(**({"head_dim": 32} if backend == "vllm" else {}), **changes)


@pytest.fixture(scope="module")
def save_tiny(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Callable[..., Path]:
    """Save the tiny model of the module's backend, with changes of its config."""

    def save(**changes: Any) -> Path:
        from support.tiny_models import save_model

        folder = tmp_path_factory.mktemp("models") / "tiny"
        return save_model(folder, _config(backend, **changes))

    return save


@pytest.fixture(scope="module")
def folder(save_tiny: Callable[..., Path], backend: str) -> Path:
    """The model; the fake backend only takes its name."""
    return Path("tiny") if backend == "fake" else save_tiny()


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
