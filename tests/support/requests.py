"""Requests to a live server, and checks that all its answers share."""

from __future__ import annotations

from typing import Any

import httpx

from latentwire.protocol import ErrorBody, HiddenState, PlanLatentResponse
from support.live_server import LiveServer

GREEDY: dict[str, Any] = {"task": "Wash the mug.", "do_sample": False, "max_new_tokens": 6}
MAX_BODY_BYTES = 100_000


def plan_of(answer: httpx.Response) -> PlanLatentResponse:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return PlanLatentResponse.model_validate_json(answer.content, strict=True)


def latent_of(answer: PlanLatentResponse) -> HiddenState:
    """The full latent, which an answer has unless the request leaves it out."""
    assert answer.hidden_state is not None
    return answer.hidden_state


def assert_problem(
    answer: httpx.Response, status: int, code: str, field: str | None = None
) -> ErrorBody:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = ErrorBody.model_validate_json(answer.content)
    assert (body.status, body.code, body.field) == (status, code, field)
    return body


def post(live: LiveServer, body: object, **params: Any) -> httpx.Response:
    return live.http.post("/plan_latent", json=body, params=params)
