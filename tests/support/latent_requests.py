"""Requests whose messages hold latents."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np

from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import encode_hidden_state
from support.live_server import LiveServer
from support.tiny_shape import HIDDEN_SIZE

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "chat_template": "qwen"}
SAFETENSORS = {"Content-Type": "application/x-safetensors"}


def matrix(num_rows: int = 3, width: int = HIDDEN_SIZE, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((num_rows, width), np.float32)


def latent(rows: Any = None, **changes: Any) -> dict[str, Any]:
    rows = matrix() if rows is None else rows
    sent = {
        "type": "latent",
        "hidden_state": encode_hidden_state(rows).model_dump(mode="json"),
        "latent": {"model": "tiny", "layer": "last", "normed": True, "alignment": "predicts"},
        "bridge": "embeddings",
    }
    return sent | changes


def body(*content: Any, **changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}], **OPTIONS, **changes}


def plan(server: LiveServer, sent: dict[str, Any]) -> PlanLatentResponse:
    answer = server.http.post("/plan_latent", json=sent)
    assert answer.status_code == 200, answer.text
    return PlanLatentResponse.model_validate_json(answer.content)


def post_escaped(server: LiveServer, sent: object) -> httpx.Response:
    """Post JSON in ASCII, which can state half of a surrogate pair."""
    headers = {"Content-Type": "application/json"}
    return server.http.post("/plan_latent", content=json.dumps(sent), headers=headers)
