"""Services over vLLM. A start takes half a minute and more, so tests share them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.live_server import LiveServer

START_TIMEOUT_S = 1800.0


def start_vllm(model: str, **changes: Any) -> LiveServer:
    from latentwire_service.engine_factory import backend_factory
    from latentwire_service.model_service import State
    from latentwire_service.settings import Settings
    from support.live_server import LiveServer

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


@pytest.fixture(scope="module")
def kind() -> str:
    return "llama"


@pytest.fixture(scope="module")
def served(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A tiny model whose cache is too small for all of its slots."""
    from support.engine import vllm_models

    folder: Path = vllm_models.save(kind, tmp_path_factory.mktemp("models") / f"tiny-{kind}")
    live = start_vllm(
        str(folder),
        max_slots=vllm_models.MAX_SLOTS,
        max_model_len=vllm_models.MAX_MODEL_LEN,
        prefill_chunk=vllm_models.PREFILL_CHUNK,
        engine_arg=vllm_models.ENGINE_ARGS,
    )
    yield live
    live.close()
