"""The HTTP contract over a real socket: every endpoint, the log, and an unblocked event loop."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from latentwire.protocol import ErrorBody, InfoResponse, PlanLatentResponse
from latentwire.tensors import decode_hidden_state
from latentwire_service.api import rendering, wire_formats
from latentwire_service.engine.prompt import fill_template
from latentwire_service.telemetry.logs import PathlessFormatter
from latentwire_service.vllm_engine.sampling import FIELD_REFUSALS
from support.live_server import LiveServer
from support.requests import GREEDY, MAX_BODY_BYTES, assert_problem, latent_of, plan_of, post
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "local", "vllm")

# --- answers


@pytest.mark.backends("local")
def test_a_plan_carries_the_rows_that_generate_gives(server: LiveServer) -> None:
    from support.tiny_models import build_model, build_tokenizer, generate, llama_config

    tokenizer = build_tokenizer()
    template = "Plan {task}, {0} {other}: {task}"
    prompt = tokenizer.encode(fill_template(template, "Wash the mug."))
    expected = generate(build_model(llama_config()), prompt, 6)
    answer = plan_of(post(server, GREEDY | {"prompt_template": template, "task_id": "t-1"}, k=4))
    assert answer.token_ids == expected.token_ids
    assert answer.plan == tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    assert (answer.task, answer.task_id, answer.k) == ("Wash the mug.", "t-1", 4)
    assert (answer.model, answer.latent.model, answer.latent.revision) == ("tiny", "tiny", None)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.latent_rows == 4
    rows = decode_hidden_state(latent_of(answer))
    assert rows.shape == (4, HIDDEN_SIZE)
    np.testing.assert_allclose(rows, expected.hidden_state[:4], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("k", "num_rows"), [(None, 6), (0, 0), (2, 2), (6, 6), (10**400, 6)])
def test_k_keeps_the_first_rows(server: LiveServer, k: int | None, num_rows: int) -> None:
    answer = plan_of(post(server, GREEDY, **({} if k is None else {"k": str(k)})))
    assert answer.k == k
    assert latent_of(answer).shape == (num_rows, HIDDEN_SIZE)
    assert len(answer.token_ids) == 6
    assert len(decode_hidden_state(latent_of(answer))) == num_rows


def test_post_and_get_agree_on_every_field(server: LiveServer) -> None:
    fields: dict[str, Any] = {
        "task": "Wash & dry: {mug} 100% 🫖",
        "task_id": "a/b",
        "prompt_template": "Do {task}",
        "chat_template": "qwen",
        "max_new_tokens": 12,
        "do_sample": True,
        "temperature": 1.5,
        "top_p": 0.8,
        "top_k": 30,
        "seed": 2**63 - 1,
        "stop": ["never", "ever"],
        "stream": False,
    }
    posted = plan_of(post(server, fields, k=3))
    query = fields | {"k": 3, "do_sample": "true", "stream": "false"}
    got = plan_of(server.http.get("/plan_latent", params=query))
    for answer in (posted, got):
        assert answer.seed == fields["seed"]
    own = {"id", "timings"}
    assert posted.model_dump(exclude=own) == got.model_dump(exclude=own)


def test_a_drawn_seed_repeats_the_answer(server: LiveServer) -> None:
    body = {"task": "Wash", "max_new_tokens": 16, "temperature": 2.0}
    first, other = (plan_of(post(server, body)) for _ in range(2))
    assert first.seed != other.seed
    again = plan_of(post(server, body | {"seed": first.seed}))
    assert again.token_ids == first.token_ids
    assert latent_of(again).data == latent_of(first).data
    assert again.id != first.id


def test_a_stop_string_ends_the_plan(server: LiveServer) -> None:
    whole = plan_of(post(server, GREEDY))
    assert whole.finish_reason == "length"
    stop = next(character for character in whole.plan if character != "\ufffd")
    stopped = plan_of(post(server, GREEDY | {"stop": [stop]}))
    assert stopped.finish_reason == "stop"
    assert stopped.plan == whole.plan[: whole.plan.index(stop)]
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]


def test_a_task_that_looks_like_the_answer_is_returned_as_text(server: LiveServer) -> None:
    task = '{"hidden_state":{"data":""}} \\"data\\":\\"\\" "data":""'
    answer = plan_of(post(server, GREEDY | {"task": task, "task_id": '"data":""'}))
    assert (answer.task, answer.task_id) == (task, '"data":""')
    assert decode_hidden_state(latent_of(answer)).shape == (6, HIDDEN_SIZE)


def test_health_ready_and_info_answer(server: LiveServer, backend: str) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json() == {"status": "ready"}
    info = InfoResponse.model_validate_json(server.http.get("/info").content)
    is_vllm = backend == "vllm"
    names = [] if is_vllm else ["embeddings", "norm", "weights"]
    assert [bridge.name for bridge in info.bridges] == names
    lacking = {"latents-in", "latent-steps", "scoring"}
    assert not lacking & set(info.capabilities) if is_vllm else "latents-in" in info.capabilities
    assert set(info.refusals) == (lacking | FIELD_REFUSALS.keys() if is_vllm else set())
    assert [each.name for each in info.compressor_info] == info.compressors
    assert "mean-pool" in info.compressors
    assert info.engine == ("vllm" if is_vllm else "latentwire")
    described = {"bridges", "capabilities", "refusals", "compressors", "compressor_info"}
    described |= {"engine", "engine_version", "uptime_s"}
    assert info.model_dump(exclude=described) == {
        "model": "tiny",
        "revision": None,
        "hidden_size": HIDDEN_SIZE,
        "vocab_size": 320,
        "dtype": "float32",
        "device": info.device,
        "limits": {
            "max_slots": 4,
            "max_model_len": 512,
            "max_queue": 1024,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_new_tokens": None,
            "request_timeout_s": None,
        },
        "version": "0.0.0",
        "generation_defaults": {},
    }
    assert info.device in {"cpu", "cuda", "mps"}
    later = InfoResponse.model_validate_json(server.http.get("/info").content)
    assert info.uptime_s is not None
    assert later.uptime_s is not None
    assert 0 < info.uptime_s < later.uptime_s
    assert socket.gethostname() not in server.http.get("/info").text


def test_metrics_count_answers_tokens_and_bytes(server: LiveServer) -> None:
    samples: list[tuple[str, dict[str, str]]] = [
        ("latentwire_requests_total", {"path": "/plan_latent", "status": "200"}),
        ("latentwire_requests_total", {"path": "/plan_latent", "status": "422"}),
        ("latentwire_requests_total", {"path": "other", "status": "404"}),
        ("latentwire_prompt_tokens_total", {}),
        ("latentwire_generation_tokens_total", {}),
        ("latentwire_latent_bytes_total", {}),
        ("latentwire_e2e_request_latency_seconds_count", {}),
    ]
    before = [server.metric(name, **labels) for name, labels in samples]
    # No other prompt begins like this one, so no prefix of it is cached.
    answer = plan_of(post(server, GREEDY | {"prompt_template": "~ {task}"}, k=2))
    post(server, {})
    server.http.get("/secret-in-a-path")
    prompt_tokens = answer.usage.prompt_tokens
    added = [1, 1, 1, prompt_tokens, 6, 2 * HIDDEN_SIZE * 4, 1]
    for (name, labels), count, increase in zip(samples, before, added, strict=True):
        server.wait_metric(count + increase, name, **labels)
    text = server.http.get("/metrics").text
    assert "secret" not in text
    server.wait_metric(0, "latentwire_requests_running")
    server.wait_metric(0, "latentwire_requests_waiting")


def test_openapi_is_3_1_and_lists_every_error(server: LiveServer) -> None:
    assert server.http.get("/docs").status_code == 200
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        *("/plan_latent", "/health", "/ready", "/info", "/metrics"),
        *("/v1/chat/completions", "/v1/models", "/v1/models/{model}"),
    }
    codes: set[str] = set()
    for method in ("get", "post"):
        responses = document["paths"]["/plan_latent"][method]["responses"]
        assert set(responses) == {
            *("200", "401", "406", "408", "413", "415", "421", "422", "429", "500", "503", "504")
        }
        plan = responses["200"]["content"]["application/json"]
        assert plan["schema"]["$ref"].endswith("/PlanLatentResponse")
        PlanLatentResponse.model_validate_json(json.dumps(plan["example"]))
        for status in set(responses) - {"200"}:
            problem = responses[status]["content"]["application/problem+json"]
            assert problem["schema"]["$ref"].endswith("/ErrorBody")
            for example in problem["examples"].values():
                body = ErrorBody.model_validate(example["value"])
                assert body.status == int(status)
                codes.add(body.code)
    assert codes >= {
        "invalid-request",
        "prompt-too-long",
        "payload-too-large",
        "queue-full",
        "internal",
        "latent-invalid",
        "not-ready",
        "deadline-exceeded",
    }
    assert "503" in document["paths"]["/ready"]["get"]["responses"]
    names = {p["name"] for p in document["paths"]["/plan_latent"]["get"]["parameters"]}
    assert names >= {"task", "k", "seed", "stop", "top_p", "stream"}


# --- the log and the event loop


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The text that the service would write to standard error."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PathlessFormatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # httpx logs the query, but it is the client of this test.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


ABSOLUTE_PATH = re.compile(r"(?<![\w.])/[\w.-]+/[\w./-]+")


def test_the_log_holds_no_task_no_query_and_no_path(
    server: LiveServer, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = server
    secret: dict[str, Any] = {"task": "SECRET task", "task_id": "SECRET", "max_new_tokens": 2}
    plan_of(post(live, secret))
    plan_of(live.http.get("/plan_latent", params=secret))
    post(live, secret | {"SECRET": 1})
    live.http.get("/SECRET?SECRET=1")
    live.http.request("SECRET", "/health")

    def break_down(*_: object) -> bytes:
        raise RuntimeError("cannot open /home/somebody/models/weights.bin")

    monkeypatch.setattr(wire_formats, "render_plan", break_down)
    problem = assert_problem(post(live, secret), 500, "internal")
    assert problem.error_id is not None
    assert "somebody" not in problem.detail
    assert "RuntimeError" not in problem.model_dump_json()
    lines = log.getvalue()
    assert "POST /plan_latent 200" in lines
    assert "GET /plan_latent 200" in lines
    assert f"ERROR latentwire_service.api.error_handlers: error {problem.error_id}" in lines
    assert "RuntimeError: cannot open weights.bin" in lines
    assert lines.count("RuntimeError: cannot open") == 1
    assert "SECRET" not in lines
    assert not ABSOLUTE_PATH.findall(lines.replace("/plan_latent", ""))


def test_an_internal_error_leaves_the_connection_usable(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> bytes:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(wire_formats, "render_plan", break_down)
        assert_problem(post(server, GREEDY), 500, "internal")
    assert plan_of(post(server, GREEDY))


def test_rendering_and_long_prompts_run_off_the_event_loop(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, int] = {}

    def note(module: Any, name: str) -> None:
        function = getattr(module, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            threads[name] = threading.get_ident()
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    note(rendering, "encode_values")
    plan_of(post(server, GREEDY))
    assert threads["encode_values"] != server.thread.ident
    # Only the filled template is long. It is too long for the model, which tokenizing it shows.
    long = {**GREEDY, "task": "Wash the mug. " * 100, "prompt_template": "{task}" * 100}
    assert_problem(post(server, long), 422, "prompt-too-long")
    assert server.watch.encoding_threads[-1] != server.thread.ident
