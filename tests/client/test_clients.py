"""Both clients against a real server on a loopback socket."""

from __future__ import annotations

import random
from typing import Any

import httpx
import numpy as np
import pytest

import latentwire
from latentwire import (
    ApiError,
    ConnectionFailedError,
    InvalidArgumentError,
    NotReadyError,
    ProtocolError,
    QueueFullError,
    TransportTimeoutError,
    WaitTimeoutError,
)
from latentwire.protocol import ErrorCode
from latentwire.retry import retry_delay

INFO: dict[str, Any] = {
    "model": "tiny",
    "revision": None,
    "hidden_size": 3,
    "vocab_size": 16,
    "dtype": "float32",
    "device": "cpu",
    "limits": {"max_slots": 4, "max_model_len": 64, "max_queue": 8, "max_body_bytes": 1024},
    "version": "0.1.0",
    "compressors": [],
}
# The callers of `call` draw their jitter from this same seed.
_RNG = random.Random(7)
OWN_DELAYS_S = [retry_delay(attempt, None, _RNG) for attempt in range(4)]


def test_plan_latent_posts_the_request_and_decodes_the_answer(
    server: Any, call: Any, wire: Any
) -> None:
    server.script = [wire.json_answer(wire.plan_body(k=2))]
    plan = call("plan_latent", "Clean the kettle", k=2, task_id="7", stop=["\n"], seed=3)
    np.testing.assert_array_equal(plan.hidden_state, wire.hidden_rows(2))
    (received,) = server.received
    assert (received.method, received.path) == ("POST", "/plan_latent?k=2")
    assert received.json == {"task": "Clean the kettle", "task_id": "7", "stop": ["\n"], "seed": 3}
    assert received.headers["user-agent"] == f"latentwire/{latentwire.__version__}"
    assert "authorization" not in received.headers


def test_absent_k_is_not_sent(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.plan_body())]
    assert call("plan_latent", "Clean the kettle").hidden_state.shape == (4, 3)
    assert server.received[0].path == "/plan_latent"


def test_k_zero_is_sent_and_gives_no_rows(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.plan_body(k=0))]
    assert call("plan_latent", "Clean the kettle", k=0).hidden_state.shape == (0, 3)
    assert server.received[0].path == "/plan_latent?k=0"


def test_api_key_is_sent_as_bearer_token(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(INFO)]
    call("info", client={"api_key": "s3cret"})
    assert server.received[0].headers["authorization"] == "Bearer s3cret"


def test_a_request_id_is_sent_and_an_error_states_the_id_of_the_answer(
    server: Any, call: Any, wire: Any
) -> None:
    refusal = wire.problem(500, "internal")
    server.script = [wire.json_answer(refusal, 500, X_Request_Id="of-the-service")]
    with pytest.raises(ApiError) as raised:
        call("plan_latent", "Clean the kettle", request_id="row-7", client={"max_retries": 0})
    assert server.received[0].headers["x-request-id"] == "row-7"
    assert raised.value.request_id == "of-the-service"


@pytest.mark.parametrize("request_id", ["", "two words", "line\nbreak", "x" * 129])
def test_a_request_id_that_cannot_be_logged_is_refused(
    server: Any, call: Any, request_id: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="request_id: must be 1 to 128"):
        call("plan_latent", "Clean the kettle", request_id=request_id)
    assert server.received == []


def test_path_prefix_of_the_base_url_is_kept(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(INFO)]
    call("info", client={"base_url": f"{server.url}/replica-1/"})
    assert server.received[0].path == "/replica-1/info"


def test_info_is_typed(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(INFO)]
    assert call("info").limits.max_slots == 4


@pytest.mark.parametrize("status", [429, 503])
def test_busy_service_is_retried_until_it_answers(
    server: Any, call: Any, wire: Any, fake_time: Any, status: int
) -> None:
    busy = wire.json_answer(wire.problem(status, "queue-full"), status)
    server.script = [busy, busy, wire.json_answer(wire.plan_body())]
    assert call("plan_latent", "Clean the kettle").plan == "1. Fill it."
    assert fake_time.sleeps == OWN_DELAYS_S[:2]
    assert server.received[0].body == server.received[2].body


def test_retry_after_seconds_are_waited(server: Any, call: Any, wire: Any, fake_time: Any) -> None:
    busy = wire.json_answer(wire.problem(503, "not-ready"), 503, Retry_After="5")
    server.script = [busy, wire.json_answer(INFO)]
    call("info")
    assert fake_time.sleeps == [retry_delay(0, 5.0, random.Random(7))]


def test_retry_after_date_is_waited(server: Any, call: Any, wire: Any, fake_time: Any) -> None:
    # The script's server dates its answers itself, so a date long past sets no wait.
    past = wire.json_answer(
        wire.problem(429, "queue-full"), 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"
    )
    future = wire.json_answer(
        wire.problem(429, "queue-full"), 429, Retry_After="Wed, 21 Oct 2150 07:28:00 GMT"
    )
    server.script = [past, future, wire.json_answer(INFO)]
    call("info")
    assert fake_time.sleeps[0] == OWN_DELAYS_S[0]
    assert 60.0 <= fake_time.sleeps[1] <= 61.0


def test_retries_of_a_busy_service_end_at_max_retries(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.problem(429, "queue-full"), 429, Retry_After="2")]
    with pytest.raises(QueueFullError) as caught:
        call("plan_latent", "t", client={"max_retries": 2})
    assert caught.value.retry_after_s == 2.0
    assert len(server.received) == 3


def test_a_busy_service_is_retried_until_the_deadline(
    server: Any, call: Any, wire: Any, fake_time: Any
) -> None:
    server.script = [wire.json_answer(wire.problem(429, "queue-full"), 429, Retry_After="20")]
    with pytest.raises(QueueFullError):
        call("plan_latent", "t", client={"retry_timeout_s": 300})
    # 20 s each, and jitter.
    assert 12 <= len(fake_time.sleeps) <= 14
    assert sum(fake_time.sleeps) <= 300


def test_gateway_page_with_503_is_retried(
    server: Any, call: Any, wire: Any, fake_time: Any
) -> None:
    page = wire.Answer(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
    server.script = [page, wire.json_answer(INFO)]
    assert call("info").model == "tiny"
    assert len(fake_time.sleeps) == 1


@pytest.mark.parametrize("status", [404, 500, 502, 504])
def test_gateway_page_is_a_protocol_error_that_quotes_it(
    server: Any, call: Any, wire: Any, status: int
) -> None:
    server.script = [wire.Answer(status, b"<html>\xff" + b"x" * 5000)]
    with pytest.raises(ProtocolError, match=f"answered {status} without problem.*<html>") as caught:
        call("plan_latent", "t")
    assert len(str(caught.value)) < 400
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("status", "code", "error_class"),
    [
        (422, "invalid-request", latentwire.InvalidRequestError),
        (422, "prompt-too-long", latentwire.PromptTooLongError),
        (401, "unauthorized", latentwire.UnauthorizedError),
        (413, "payload-too-large", latentwire.PayloadTooLargeError),
        (504, "deadline-exceeded", latentwire.DeadlineExceededError),
        (500, "internal", latentwire.InternalServiceError),
        (500, "latent-invalid", latentwire.LatentInvalidError),
        (404, "not-found", ApiError),
        (405, "method-not-allowed", ApiError),
    ],
)
def test_error_code_decides_the_exception_and_is_not_retried(
    server: Any, call: Any, wire: Any, status: int, code: ErrorCode, error_class: type[ApiError]
) -> None:
    server.script = [wire.json_answer(wire.problem(status, code, field="stop"), status)]
    with pytest.raises(ApiError, match="why") as caught:
        call("plan_latent", "t")
    assert type(caught.value) is error_class
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.body.field == "stop"
    assert len(server.received) == 1


def test_refused_connection_is_retried_then_raised(
    call: Any, refused_url: str, fake_time: Any
) -> None:
    with pytest.raises(ConnectionFailedError, match=f"POST {refused_url}/plan_latent"):
        call("plan_latent", "t", client={"base_url": refused_url})
    assert fake_time.sleeps == OWN_DELAYS_S


def test_broken_body_is_retried(server: Any, call: Any, wire: Any, fake_time: Any) -> None:
    server.script = [wire.Answer(body=b"{", missing_bytes=9), wire.json_answer(INFO)]
    assert call("info").model == "tiny"
    assert len(fake_time.sleeps) == 1


def test_read_timeout_is_not_retried(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.Answer(is_silent=True)]
    with pytest.raises(TransportTimeoutError, match="no answer in time"):
        call("plan_latent", "t", client={"timeout_s": 0.1})
    assert server.arrived.acquire(timeout=60)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b"[]", b'{"id": "plan-1"}'], ids=lambda body: body.decode()
)
def test_success_with_another_body_is_a_protocol_error(
    server: Any, call: Any, wire: Any, body: bytes
) -> None:
    server.script = [wire.Answer(200, body)]
    with pytest.raises(ProtocolError, match="did not answer with a PlanLatentResponse"):
        call("plan_latent", "t")


def test_redirect_is_a_protocol_error(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.Answer(307, headers={"Location": "/elsewhere"})]
    with pytest.raises(ProtocolError, match="answered 307"):
        call("info")


def test_undecodable_body_is_a_protocol_error(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.Answer(200, b"not gzip", {"Content-Encoding": "gzip"})]
    with pytest.raises(ProtocolError, match="/info"):
        call("info")


def test_answer_for_another_k_is_a_protocol_error(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.plan_body(k=None))]
    with pytest.raises(ProtocolError, match="the request has k 2, .* has k None"):
        call("plan_latent", "t", k=2)


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"k": -1}, "k", "k: must be at least 0"),
        ({"temperature": -1.0}, "temperature", "temperature: must be at least 0"),
        ({"top_p": 0.0}, "top_p", "top_p: must be above 0"),
        ({"stop": ["x", ""]}, "stop", r"stop\.1: must not be empty"),
        ({"seed": 2**63}, "seed", "seed: must be at most 9223372036854775807"),
        ({"temprature": 1.0}, "temprature", "temprature: unknown field"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_sent(
    server: Any, call: Any, arguments: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        call("plan_latent", "t", **arguments)
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)
    assert server.received == []


@pytest.mark.parametrize("task", ["", "\ud800"])
def test_unsendable_task_is_refused(call: Any, task: str) -> None:
    with pytest.raises(InvalidArgumentError, match="^task: "):
        call("plan_latent", task)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://host:port"}, "base_url"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
        ({"retry_timeout_s": -1}, "retry_timeout_s"),
        ({"retry_timeout_s": float("inf")}, "retry_timeout_s"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two words"}, "api_key"),
        ({"api_key": "line\nbreak"}, "api_key"),
        ({"api_key": "clé"}, "api_key"),
    ],
)
def test_bad_client_settings_are_refused(call: Any, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}: ") as caught:
        call("health", client=arguments)
    assert caught.value.field == field


def test_errors_hide_the_credentials_of_the_url(call: Any, refused_url: str) -> None:
    url = refused_url.replace("//", "//user:s3cret@")
    with pytest.raises(ConnectionFailedError) as caught:
        call("info", client={"base_url": url, "max_retries": 0})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("method", "word"), [("health", "ok"), ("ready", "ready")])
def test_probe_is_true_for_an_available_service(
    server: Any, call: Any, wire: Any, method: str, word: str
) -> None:
    server.script = [wire.json_answer({"status": word})]
    assert call(method) is True
    assert server.received[0].path == f"/{method}"


@pytest.mark.parametrize("method", ["health", "ready"])
@pytest.mark.parametrize("status", [502, 503, 504])
def test_probe_sends_one_request_and_is_false_when_unready(
    server: Any, call: Any, wire: Any, method: str, status: int
) -> None:
    server.script = [wire.json_answer(wire.problem(status, "not-ready"), status)]
    assert call(method) is False
    assert len(server.received) == 1


@pytest.mark.parametrize("method", ["health", "ready"])
def test_probe_is_false_when_nothing_listens(call: Any, refused_url: str, method: str) -> None:
    assert call(method, client={"base_url": refused_url}) is False


@pytest.mark.parametrize("method", ["health", "ready"])
def test_probe_of_another_service_is_a_protocol_error(
    server: Any, call: Any, wire: Any, method: str
) -> None:
    server.script = [wire.Answer(200, b"<html>Welcome</html>")]
    with pytest.raises(ProtocolError, match="StatusResponse"):
        call(method)


def test_wait_ready_polls_until_ready(server: Any, call: Any, wire: Any, fake_time: Any) -> None:
    loading = wire.json_answer(wire.problem(503, "not-ready"), 503)
    server.script = [loading, loading, wire.json_answer({"status": "ready"})]
    assert call("wait_ready", 10.0) is None
    assert fake_time.sleeps == [0.25, 0.25]


def test_wait_ready_gives_up_at_the_deadline_with_the_reason(
    server: Any, call: Any, wire: Any, fake_time: Any
) -> None:
    # A probe gets no more time than is left, and none here is to run out of it.
    fake_time.speed = 100.0
    server.script = [wire.json_answer(wire.problem(503, "not-ready", detail="loading"), 503)]
    with pytest.raises(
        WaitTimeoutError, match=r"within 75\.1 s; last reason: not-ready \(503\): loading"
    ):
        call("wait_ready", 75.1)
    assert len(server.received) == 4


def test_wait_ready_keeps_polling_while_connections_are_refused(
    call: Any, refused_url: str
) -> None:
    with pytest.raises(WaitTimeoutError, match=f"GET {refused_url}/ready"):
        call("wait_ready", 1.0, client={"base_url": refused_url})


def test_wait_ready_raises_at_once_for_a_missing_key(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.problem(401, "unauthorized"), 401)]
    with pytest.raises(latentwire.UnauthorizedError):
        call("wait_ready", 60.0)
    assert len(server.received) == 1


def test_wait_ready_refuses_a_timeout_of_zero(call: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        call("wait_ready", 0)


def test_not_ready_is_raised_when_retries_run_out(server: Any, call: Any, wire: Any) -> None:
    server.script = [wire.json_answer(wire.problem(503, "not-ready"), 503)]
    with pytest.raises(NotReadyError):
        call("info", client={"max_retries": 0})


def test_transport_replaces_the_network() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"status": "ok"}))
    with latentwire.Client("http://nowhere.invalid", transport=transport) as client:
        assert client.health() is True
