"""Errors of OpenAI's routes: their form, and the exceptions that the openai package raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire.safetensors_wire import pack_request
from latentwire_service.api import event_stream
from latentwire_service.model_service import ModelService
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer, RouteLines
from support.openai_clients import MESSAGES, client_of, package
from support.requests import MAX_BODY_BYTES
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake")

CHAT = "/v1/chat/completions"
PATHS = ("/v1/chat/completions", "/v1/models", "/v1/models/tiny", "/v1/other")


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (name, error) = next(iter(answer.json().items()))
    assert name == "error"
    assert list(error) == ["message", "type", "param", "code"]
    return dict(error)


def post(live: LiveServer, **fields: Any) -> httpx.Response:
    # Escaped, because half of a surrogate pair has no other form.
    content = json.dumps({"messages": MESSAGES, "max_tokens": 3, **fields})
    return live.http.post(CHAT, content=content, headers={"Content-Type": "application/json"})


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Go", **fields}]}


LATENT: dict[str, Any] = {
    "type": "latent",
    "hidden_state": {"data": "AAAA", "shape": [1, HIDDEN_SIZE]},
    "latent": {"model": "tiny"},
    "bridge": "embeddings",
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "3"}, "max_tokens"),
    ({"max_new_tokens": 3}, "max_new_tokens"),
    ({"max_tokn": 3}, "max_tokn"),
    ({"task": "x"}, "task"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"stop": 3}, "stop"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"latent": True}, "latent"),
    ({"latent": {"k": -1}}, "latent.k"),
    ({"latent": {"q": 1}}, "latent.q"),
    ({"latent": {"latent_steps": 1}, "latent_steps": 2}, "latent.latent_steps"),
    ({"latent": {"step_bridge": "norm"}}, "latent.step_bridge"),
    ({"step_bridge": "norm"}, "step_bridge"),
    ({"latent_steps": 1, "step_bridge": "nobody"}, "step_bridge"),
    ({"latent": {"chat_template_kwargs": {"a": []}}}, "latent.chat_template_kwargs"),
    ({"messages": []}, "messages"),
    ({"messages": "Go"}, "messages"),
    (message(content=None), "messages.0.content"),
    (message(role="x" * 500), "messages.0.role"),
    (message(role="\ud800"), "messages.0.role"),
    (message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages.0.content.0"),
    (message(role="tool", tool_call_id="x"), "messages.0.role"),
    (message(role="assistant", tool_calls=[{"id": "x"}]), "messages.0.tool_calls"),
    (message(content=[LATENT]), "messages.0.content.0.hidden_state.data"),
    (message(content=[LATENT | {"bridge": "nobody"}]), "messages.0.content.0.bridge"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_what_is_not_served_is_refused_by_name(
    server: LiveServer, fields: dict[str, Any], param: str, is_streaming: bool
) -> None:
    sent = {"stream": True} | fields if is_streaming and "stream_options" not in fields else fields
    server.forget_submitted()
    error = error_of(post(server, **sent), 400)
    assert error["param"] is not None
    assert error["param"].startswith(param), error
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert not server.watch.submitted.acquire(blocking=False)


def test_the_messages_name_the_fields_of_this_route(server: LiveServer) -> None:
    for sent, name in (
        ({"max_tokens": 9999}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 9999}, "max_completion_tokens"),
    ):
        error = error_of(post(server, **sent), 400)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "messages"
        assert f" {name} is 9999" in error["message"]


def test_invalid_requests_are_bad_requests(server: LiveServer) -> None:
    openai = package()
    with client_of(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
        assert (caught.value.param, caught.value.type) == ("n", "invalid_request_error")
        assert caught.value.request_id.startswith("req-")
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-5", messages=MESSAGES)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        assert "tiny" in caught.value.message
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-5")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="tiny", input="x", encoding_format="float")


def test_models_are_listed(server: LiveServer) -> None:
    with client_of(server) as client:
        (model,) = client.models.list()
        assert (model.id, model.object) == ("tiny", "model")
        assert client.models.retrieve(model.id) == model


def test_a_model_of_a_hub_has_a_slash_in_its_name(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = server.service.info
    named = replace(info, model_id="Qwen/Qwen2.5-0.5B")
    monkeypatch.setattr(ModelService, "info", property(lambda _self: named))
    with client_of(server) as client:
        assert client.models.retrieve("Qwen/Qwen2.5-0.5B").id == named.model_id
    assert server.http.get("/v1/models/Qwen/Qwen2.5-0.5B").status_code == 200


def test_the_model_may_be_absent(server: LiveServer) -> None:
    assert post(server).json()["model"] == "tiny"


@pytest.mark.parametrize("path", PATHS)
def test_a_missing_key_is_an_authentication_error(
    start: Callable[..., LiveServer], path: str
) -> None:
    live = start(api_key="k").wait_ready()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        error = error_of(httpx.get(live.url + path, headers=headers), 401)
        assert error["code"] == "invalid_api_key"
    openai = package()
    with client_of(live) as client:
        assert client.models.list().data[0].id == "tiny"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_methods_paths_hosts_and_forms_are_refused_in_the_form(server: LiveServer) -> None:
    http = server.http
    answer = http.get(CHAT)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "OPTIONS, POST"
    answer = http.delete("/v1/models/tiny")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "GET, OPTIONS"
    assert http.options("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    assert error_of(http.get("/v1/other"), 404)["code"] == "not_found"
    for path in (CHAT, "/v1/models"):
        assert "slash" in error_of(http.get(f"{path}/"), 404)["message"]
    assert error_of(http.get("/v1/models", headers={"Host": "evil"}), 421)["code"] == "misdirected"
    form = {"Content-Type": "text/plain"}
    assert error_of(http.post(CHAT, content="{}", headers=form), 415)
    form = {"Content-Type": "application/json"}
    for content in ("{", "[]", "", '{"messages": 1, "messages": 2}', "null"):
        assert error_of(http.post(CHAT, content=content, headers=form), 400)
    too_large = json.dumps({"messages": MESSAGES, "user": "x" * MAX_BODY_BYTES})
    error = error_of(http.post(CHAT, content=too_large, headers=form), 413)
    assert error["code"] == "payload_too_large"


def test_a_full_queue_is_a_rate_limit(start: Callable[..., LiveServer], gate: Gate) -> None:
    live = start(Faults(before_decode=gate), max_slots=1, max_queue=1).wait_ready()
    openai = package()
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(post, live) for _ in range(2)]
        for _ in accepted:
            assert live.watch.submitted.acquire(timeout=TIMEOUT_S)
        for is_streaming in (False, True):
            answer = post(live, stream=is_streaming)
            assert error_of(answer, 429)["code"] == "rate_limit_exceeded"
            assert answer.headers["retry-after"]
        with client_of(live) as client, pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert caught.value.type == "rate_limit_error"
        gate.may_pass.set()
        assert [future.result().status_code for future in accepted] == [200, 200]


def test_a_loading_service_is_an_internal_server_error(
    start: Callable[..., LiveServer], gate: Gate
) -> None:
    live = start(Faults(before_load=gate))
    openai = package()
    for answer in (post(live), post(live, stream=True), live.http.get("/v1/models")):
        assert error_of(answer, 503)["code"] == "not_ready"
        assert answer.headers["retry-after"]
    with client_of(live) as client, pytest.raises(openai.InternalServerError):
        client.models.list()
    gate.may_pass.set()


def test_a_deadline_is_504_or_ends_the_stream(
    start: Callable[..., LiveServer], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stream has begun before the deadline, however long its first token takes.
    monkeypatch.setattr(event_stream, "FIRST_ITEM_S", 0.0)
    live = start(Faults(before_decode=gate)).wait_ready()
    headers = {"X-Request-Timeout": "0.5"}
    openai = package()
    with client_of(live) as client:
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, extra_headers=headers
        )
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "deadline_exceeded"
    answer = live.http.post(CHAT, json={"messages": MESSAGES}, headers=headers)
    assert error_of(answer, 504)["type"] == "server_error"
    live.wait_metric(1, "latentwire_stream_errors_total", code="deadline-exceeded")
    live.wait_metric(2, "latentwire_requests_total", path=CHAT, status="504")


def test_a_broken_latent_is_an_internal_error(start: Callable[..., LiveServer]) -> None:
    live = start(Faults(has_nan_rows=True)).wait_ready()
    assert error_of(post(live, latent={}), 500)["code"] == "latent_invalid"


def test_a_caller_that_leaves_frees_its_slot(start: Callable[..., LiveServer], gate: Gate) -> None:
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    with client_of(live) as client:
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        stream.close()
        assert live.watch.cancelled.wait(TIMEOUT_S)
        gate.may_pass.set()
        assert post(live).status_code == 200


def test_the_limit_of_the_service_holds_for_chosen_lengths_only(
    start: Callable[..., LiveServer],
) -> None:
    live = start(max_new_tokens_limit=4).wait_ready()
    assert error_of(post(live, max_tokens=5), 400)["param"] == "max_tokens"
    assert post(live, max_tokens=None).json()["usage"]["completion_tokens"] == 4


def test_variables_of_the_template_are_in_the_latent_or_at_the_top(server: LiveServer) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    for sent in (kwargs, {"latent": kwargs}, {**kwargs, "latent": kwargs}):
        assert post(server, **sent).status_code == 200


def test_ignored_fields_are_not_read(server: LiveServer) -> None:
    for ignored in ("1e999", "[" * 300 + "]" * 300, '"\\ud800"', "null"):
        body = f'{{"messages": {json.dumps(MESSAGES)}, "max_tokens": 1, "user": {ignored}}}'
        headers = {"Content-Type": "application/json"}
        answer = server.http.post(CHAT, content=body, headers=headers)
        assert answer.status_code == 200, answer.text


def test_a_latent_may_be_a_tensor_of_the_request(server: LiveServer) -> None:
    rows = np.ones((3, HIDDEN_SIZE), np.float32)
    part = LATENT | {"hidden_state": "rows"}
    body = message(content=[part]) | {"max_tokens": 2}
    headers = {"Content-Type": "application/x-safetensors"}
    sent = pack_request(body, {"rows": rows})
    answer = server.http.post(CHAT, content=sent, headers=headers)
    assert answer.json()["usage"]["prompt_tokens"] == 3
    sent = pack_request(body, {"other": rows})
    error = error_of(server.http.post(CHAT, content=sent, headers=headers), 400)
    assert error["param"] == "messages.0.content.0.hidden_state"


def test_the_log_and_the_metrics_name_the_route(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.settle()
    with caplog.at_level("INFO"), RouteLines() as logged:
        answer = post(server)
        error_of(post(server, n=2), 400)
        logged.wait(2)
    served = [r for r in caplog.records if getattr(r, "route", "") == CHAT]
    assert [vars(r)["status"] for r in served] == [200, 400]
    assert vars(served[0])["plan_id"] == answer.json()["id"]
    assert server.metric("latentwire_requests_total", path=CHAT, status="400") >= 1
