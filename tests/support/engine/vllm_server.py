"""A service over a vLLM of its own, in the process of the tests."""

from __future__ import annotations

import time
from typing import Any

from latentwire_service.engine_factory import backend_factory
from latentwire_service.model_service import State
from latentwire_service.settings import Settings
from support.live_server import LiveServer

START_TIMEOUT_S = 1800.0


def start_vllm(model: str, **changes: Any) -> LiveServer:
    """Start vLLM with a model and wait for it."""
    live = LiveServer(
        Settings(model=model, engine="vllm", **changes),
        lambda settings, _faults: backend_factory(settings),
    )
    live.http.timeout = 300.0
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while live.service.state is State.LOADING and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert live.service.state is State.READY, live.service.failure
    return live
