"""Services over vLLM. A start takes half a minute and more, so tests share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.live_server import LiveServer


@pytest.fixture(scope="module")
def kind() -> str:
    return "llama"


@pytest.fixture(scope="module")
def served(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A tiny model whose cache is too small for all of its slots."""
    from support.engine import vllm_models
    from support.engine.vllm_server import start_vllm

    folder: Path = vllm_models.save(kind, tmp_path_factory.mktemp("models") / f"tiny-{kind}")
    live = start_vllm(
        str(folder),
        max_slots=vllm_models.MAX_SLOTS,
        max_model_len=vllm_models.MAX_MODEL_LEN,
        prefill_chunk=vllm_models.PREFILL_CHUNK,
        # vLLM counts what its scheduler does.
        engine_arg=(*vllm_models.ENGINE_ARGS, "disable_log_stats=false"),
    )
    yield live
    live.close()
