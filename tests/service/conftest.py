"""A service of a tiny model, for the modules that need no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire_service import local_backend
from latentwire_service.engine.engine_thread import EngineThread
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.settings import Settings
from support.live_server import Gate, GatedRunner, LiveServer
from support.requests import MAX_BODY_BYTES
from support.tiny_models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def settings_of(folder: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"model": str(folder), "max_slots": 4, "max_body_bytes": MAX_BODY_BYTES}
    return Settings(**(given | changes))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    live = LiveServer(settings_of(folder))
    yield live.wait_ready()
    live.close()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., LiveServer]]:
    """Start a server of the test's own."""
    started: list[LiveServer] = []

    def start_one(**changes: Any) -> LiveServer:
        started.append(LiveServer(settings_of(folder, **changes)))
        return started[-1]

    yield start_one
    for live in started:
        live.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds every decode step of servers that are started afterwards."""
    held = Gate()
    build = build_runner
    monkeypatch.setattr(
        local_backend,
        "build_runner",
        lambda *args, **kw: GatedRunner(build(*args, **kw), before=held),
    )
    yield held
    held.may_pass.set()


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a request that is not finished is cancelled."""
    happened = threading.Event()
    cancel = EngineThread.cancel

    def cancel_and_tell(self: EngineThread, request: Any) -> None:
        is_finished = request.future.done() and not request.future.cancelled()
        cancel(self, request)
        if not is_finished:
            happened.set()

    monkeypatch.setattr(EngineThread, "cancel", cancel_and_tell)
    return happened
