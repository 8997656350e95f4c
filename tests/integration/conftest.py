"""A service in a process of its own, and a model for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.child import Child


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_models import llama_config, save_model

    # Many positions, so that a request can run as long as a test needs.
    config = llama_config(max_position_embeddings=40_000, eos_token_id=None)
    return save_model(tmp_path_factory.mktemp("models") / "tiny", config)


@pytest.fixture
def serve() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*args: str, **options: Any) -> Child:
        started.append(Child(*args, **options))
        return started[-1]

    yield start
    for child in started:
        child.close()
