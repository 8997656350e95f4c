"""The openai package as a client of the tests' servers. It is untyped here."""

from __future__ import annotations

from typing import Any

import pytest

from latentwire.protocol import HiddenState
from latentwire.tensors import decode_hidden_state, decode_row
from support.gate import TIMEOUT_S
from support.live_server import LiveServer
from support.tiny_shape import HIDDEN_SIZE

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Wash the mug."}]
# The local backend's model has no chat template.
QWEN: dict[str, Any] = {"chat_template": "qwen"}


def package() -> Any:
    return pytest.importorskip("openai")


def client_of(live: LiveServer, **options: Any) -> Any:
    return package().OpenAI(**_options(live), **options)


def async_client_of(live: LiveServer) -> Any:
    return package().AsyncOpenAI(**_options(live))


def _options(live: LiveServer) -> dict[str, Any]:
    key = live.headers.get("Authorization", "Bearer none").removeprefix("Bearer ")
    return {
        "base_url": f"{live.url}/v1",
        "api_key": key,
        "timeout": TIMEOUT_S,
        "max_retries": 0,
    }


def rows_of(latent: Any) -> Any:
    """The rows of an answer's latent."""
    return decode_hidden_state(HiddenState.model_validate(latent["hidden_state"]))


def row_of(delta_latent: Any) -> Any:
    """The row of a chunk."""
    values = decode_row(delta_latent["row"])
    assert values.shape == (HIDDEN_SIZE,)
    return values
