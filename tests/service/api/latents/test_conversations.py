"""Messages and latents in requests over a real socket."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire import Client
from latentwire.protocol import InfoResponse, PlanLatentResponse
from latentwire.safetensors_wire import pack_request
from latentwire.tensors import decode_hidden_state, encode_hidden_state
from support.live_server import LiveServer
from support.requests import assert_problem
from support.tiny_shape import HIDDEN_SIZE, MAX_MODEL_LEN

pytestmark = pytest.mark.backends("fake", "local")

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


def same(first: PlanLatentResponse, second: PlanLatentResponse) -> bool:
    return first.token_ids == second.token_ids and np.array_equal(rows_of(first), rows_of(second))


def rows_of(answer: PlanLatentResponse) -> Any:
    return decode_hidden_state(answer.hidden_state)


def test_one_message_is_the_task_in_its_template(server: LiveServer) -> None:
    asked = plan(server, {"task": "Go", "prompt_template": "{task}", **OPTIONS})
    for content in ("Go", [{"type": "text", "text": "G"}, {"type": "text", "text": "o"}]):
        sent = {"messages": [{"role": "user", "content": content}], **OPTIONS}
        answer = plan(server, sent)
        assert same(answer, asked)
        assert answer.task is None
        assert answer.usage.prompt_tokens == asked.usage.prompt_tokens


def test_a_system_message_comes_before_the_task(server: LiveServer) -> None:
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Go"}]
    asked = {"task": "Go", "prompt_template": "{task}", "system": "Short.", **OPTIONS}
    assert same(plan(server, asked), plan(server, {"messages": messages, **OPTIONS}))
    by_query = {name: str(value).lower() for name, value in OPTIONS.items()}
    answer = server.http.get(
        "/plan_latent",
        params={"task": "Go", "prompt_template": "{task}", "system": "Short.", **by_query},
    )
    assert same(PlanLatentResponse.model_validate_json(answer.content), plan(server, asked))


def test_rows_change_the_answer_and_count_as_prompt_tokens(server: LiveServer) -> None:
    text = {"type": "text", "text": "Read:"}
    without = plan(server, body(text))
    first = plan(server, body(text, latent(matrix(3))))
    second = plan(server, body(text, latent(matrix(3, seed=1))))
    assert first.usage.prompt_tokens == without.usage.prompt_tokens + 3
    assert not same(first, second)
    assert same(first, plan(server, body(text, latent(matrix(3)))))


@pytest.mark.backends("local")
def test_embeddings_of_tokens_are_read_as_the_tokens(server: LiveServer) -> None:
    """The bridge `embeddings` gives the rows to the model as they are."""
    from support.tiny_models import build_model, build_tokenizer, llama_config

    token_ids = build_tokenizer().encode("kettle", add_special_tokens=False)
    table = build_model(llama_config()).get_input_embeddings().weight.detach().numpy()
    before, after = ({"type": "text", "text": text} for text in ("Clean the ", "!"))
    read = plan(server, body(before, latent(table[token_ids]), after))
    spelled = plan(server, body({"type": "text", "text": "Clean the kettle!"}))
    assert read.usage.prompt_tokens == spelled.usage.prompt_tokens
    assert read.token_ids == spelled.token_ids
    np.testing.assert_allclose(rows_of(read), rows_of(spelled), atol=1e-4)


@pytest.mark.parametrize("wire", ["json", "safetensors"])
def test_an_answer_is_a_part_of_the_next_request(server: LiveServer, wire: Any) -> None:
    with Client(server.url, wire=wire) as client:
        answer = client.plan_latent("Go", max_new_tokens=4, do_sample=False)
        content = [{"type": "text", "text": "Read:"}, answer.as_part()]
        reply = client.plan_latent(
            messages=[{"role": "user", "content": content}],
            max_new_tokens=4,
            do_sample=False,
            chat_template="qwen",
        )
    # `weights` is the bridge of a model's own rows.
    named = plan(server, body(content[0], answer.as_part(bridge="weights")))
    assert tuple(named.token_ids) == reply.token_ids
    assert reply.usage.prompt_tokens == named.usage.prompt_tokens


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_safetensors_request_is_the_same_request(server: LiveServer, is_plain: bool) -> None:
    rows = matrix(5)
    text = {"type": "text", "text": "Read:"}
    fields = body(text, latent(hidden_state="a tensor"), k=2)
    content = pack_request(fields, {"a tensor": rows, "unused": rows})
    if is_plain:
        # Text fields may be written without quotes.
        content = content.replace(rb'"\"qwen\""', b'"qwen"    ')
    answer = server.http.post("/plan_latent", content=content, headers=SAFETENSORS)
    assert answer.status_code == 200, answer.text
    assert same(
        PlanLatentResponse.model_validate_json(answer.content),
        plan(server, body(text, latent(rows), k=2)),
    )


HUGE = {"data": "", "shape": [1, 10**9]}
NOT_BASE64 = {"data": "@@@@", "shape": [1, 1]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a lying shape": (latent(hidden_state=HUGE), "messages.0.content.0.latent"),
    "a lying number of rows": (
        latent(hidden_state={"data": "", "shape": [3, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state.data",
    ),
    "negative sizes": (
        latent(hidden_state={"data": "", "shape": [-1, -HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state",
    ),
    "data that is not base64": (
        latent(hidden_state={"data": "@" * 16 * 16, "shape": [1, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state.data",
    ),
    "no rows": (
        latent(hidden_state={"data": "", "shape": [0, HIDDEN_SIZE]}),
        "messages.0.content.0.hidden_state",
    ),
    "width 0": (
        latent(hidden_state={"data": "", "shape": [3, 0]}),
        "messages.0.content.0.hidden_state",
    ),
    "another width": (latent(matrix(2, HIDDEN_SIZE + 1)), "messages.0.content.0.latent"),
    "NaN": (
        latent(np.full((2, HIDDEN_SIZE), np.nan, np.float32)),
        "messages.0.content.0.hidden_state",
    ),
    "infinity": (
        latent(np.full((2, HIDDEN_SIZE), np.inf, np.float32)),
        "messages.0.content.0.hidden_state",
    ),
    "an unknown bridge": (latent(bridge="x" * 99), "messages.0.content.0.bridge"),
    "another model": (
        latent(bridge="weights", latent={"model": "other"}),
        "messages.0.content.0.latent",
    ),
    "another model, no bridge named": (
        latent(bridge=None, latent={"model": "other"}),
        "messages.0.content.0.latent",
    ),
    "another layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "12"}),
        "messages.0.content.0.latent",
    ),
    "rows that are not normed": (
        latent(bridge="weights", latent={"model": "tiny", "normed": False}),
        "messages.0.content.0.latent",
    ),
    "a tensor that is not there": (
        latent(hidden_state="t"),
        "messages.0.content.0.hidden_state",
    ),
    "another dtype": (
        latent(hidden_state={"data": "", "shape": [1, 1], "dtype": "float16"}),
        "messages.0.content.0.hidden_state.dtype",
    ),
    "a model that is not Unicode": (
        latent(bridge="weights", latent={"model": "\ud800"}),
        "messages.0.content.0.latent.model",
    ),
    "a long model": (
        latent(bridge=None, latent={"model": "x" * 9000}),
        "messages.0.content.0.latent.model",
    ),
    "a revision that is not Unicode": (
        latent(bridge="weights", latent={"model": "tiny", "revision": "\udfff"}),
        "messages.0.content.0.latent.revision",
    ),
    "a layer that is not Unicode": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "\ud800"}),
        "messages.0.content.0.latent.layer",
    ),
    "a long layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": "x" * 9000}),
        "messages.0.content.0.latent.layer",
    ),
    "a huge number of a layer": (
        latent(bridge="weights", latent={"model": "tiny", "layer": 10**300}),
        "messages.0.content.0.latent.layer",
    ),
    "a layer that is a list": (
        latent(bridge="weights", latent={"model": "tiny", "layer": [1]}),
        "messages.0.content.0.latent.layer",
    ),
    "normed as text": (
        latent(bridge="weights", latent={"model": "tiny", "normed": "yes"}),
        "messages.0.content.0.latent.normed",
    ),
    "sizes as text": (
        latent(hidden_state={"data": "", "shape": ["3", str(HIDDEN_SIZE)]}),
        "messages.0.content.0.hidden_state.shape.0",
    ),
    "an image": ({"type": "image_url", "image_url": "x"}, "messages.0.content.0"),
    "no type": ({"text": "x"}, "messages.0.content.0"),
    "an unknown field": ({"type": "text", "text": "x", "cache": 1}, "messages.0.content.0.cache"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_part_that_cannot_be_read_is_named(server: LiveServer, name: str) -> None:
    part, field = REFUSED[name]
    answer = post_escaped(server, body(part))
    assert_problem(answer, 422, "invalid-request", field)
    assert len(answer.content) < 1000
    assert plan(server, body({"type": "text", "text": "x"})).token_ids


def test_a_latent_longer_than_the_model_reads_is_refused_with_both_numbers(
    server: LiveServer,
) -> None:
    rows = {"data": "", "shape": [MAX_MODEL_LEN + 1, HIDDEN_SIZE]}
    answer = server.http.post("/plan_latent", json=body(latent(hidden_state=rows)))
    problem = assert_problem(answer, 422, "prompt-too-long")
    assert (problem.prompt_tokens, problem.max_model_len) == (MAX_MODEL_LEN + 1, MAX_MODEL_LEN)


def test_ten_thousand_parts_are_refused(server: LiveServer) -> None:
    parts = [{"type": "text", "text": "x"}] * 10_000
    answer = server.http.post("/plan_latent", json=body(*parts[:1000]))
    assert_problem(answer, 422, "invalid-request", "messages.0.content")
    answer = server.http.post("/plan_latent", json=body(*parts))
    assert_problem(answer, 413, "payload-too-large")


EXCLUSIVE: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "task"),
    "both": ({"task": "Go", "messages": [{"role": "user", "content": "Go"}]}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "system with messages": (
        {"messages": [{"role": "user", "content": "Go"}], "system": "x"},
        "system",
    ),
    "template with messages": (
        {"messages": [{"role": "user", "content": "Go"}], "prompt_template": "{task}"},
        "prompt_template",
    ),
    "no tokens": ({"task": "Go", "max_new_tokens": 0}, "max_new_tokens"),
    "a role that is no text": ({"messages": [{"role": 1, "content": "x"}]}, "messages.0.role"),
    "an empty role": ({"messages": [{"role": "", "content": "x"}]}, "messages.0.role"),
    "content that is a number": (
        {"messages": [{"role": "user", "content": 1}]},
        "messages.0.content",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a nested variable": (
        {"task": "Go", "chat_template_kwargs": {"a": {}}},
        "chat_template_kwargs",
    ),
    "an empty plan": ({"task": "Go", "plan": ""}, "plan"),
    "no text without markup": (
        {"messages": [{"role": "user", "content": ""}], "chat_template": "none"},
        "messages",
    ),
    "a variable that is a list": (
        {"task": "Go", "chat_template_kwargs": {"a": [1]}},
        "chat_template_kwargs",
    ),
    "a variable that is not Unicode": (
        {"task": "Go", "chat_template_kwargs": {"a": "\ud800"}},
        "chat_template_kwargs",
    ),
    "a variable whose name is none": (
        {"task": "Go", "chat_template_kwargs": {"a b": 1}},
        "chat_template_kwargs",
    ),
    "a step bridge without steps": ({"task": "Go", "step_bridge": "weights"}, "step_bridge"),
}


@pytest.mark.parametrize("name", list(EXCLUSIVE))
def test_fields_that_exclude_each_other_are_named(server: LiveServer, name: str) -> None:
    sent, field = EXCLUSIVE[name]
    answer = post_escaped(server, {**OPTIONS, **sent})
    assert_problem(answer, 422, "invalid-request", field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_variables_of_the_template_are_finite(server: LiveServer, number: str) -> None:
    sent = f'{{"task": "Go", "chat_template_kwargs": {{"a": {number}}}}}'
    answer = server.http.post(
        "/plan_latent", content=sent, headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, 422, "invalid-request", "chat_template_kwargs")


def with_places(*places: tuple[int, int, int], num_bytes: int = 32) -> bytes:
    """A file with a tensor of so many rows of two values for each `(rows, start, end)`."""
    header = json.dumps(
        {"__metadata__": {"task": "Go"}}
        | {
            f"t{index}": {"dtype": "F32", "shape": [rows, 2], "data_offsets": [start, end]}
            for index, (rows, start, end) in enumerate(places)
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(num_bytes)


BROKEN = {
    "two tensors in one place": with_places((4, 0, 32), (4, 0, 32)),
    "tensors that overlap": with_places((3, 0, 24), (2, 16, 32)),
    "a tensor inside another": with_places((4, 0, 32), (1, 8, 16)),
    "a gap between tensors": with_places((1, 0, 8), (2, 16, 32)),
    "bytes after the tensors": with_places((3, 0, 24)),
    "a tensor that ends before it begins": with_places((4, 32, 0)),
    "more rows than fit, of width 0": with_places((4, 0, 32), num_bytes=32).replace(
        b"[4, 2]", b"[9999999999999999999999, 0]"
    ),
    "a tensor of numbers": with_places((4, 0, 32)).replace(b'"F32"', b'"I32"'),
    "empty": b"",
    "a cut length": b"\x01\x00",
    "a header beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"nope",
    "a header that is a list": (2).to_bytes(8, "little") + b"[]",
    "metadata that are a list": (19).to_bytes(8, "little") + b'{"__metadata__":[]}',
    "a nested header": (20_000).to_bytes(8, "little") + b"[" * 10_000 + b"]" * 10_000,
    "a tensor beyond the file": pack_request({"task": "Go"}, {"t": matrix(1)})[:-4],
    "a tensor of another dtype": pack_request({"task": "Go"}, {"t": matrix(1)}).replace(
        b'"F32"', b'"F16"'
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_safetensors_request_is_refused(server: LiveServer, name: str) -> None:
    answer = server.http.post("/plan_latent", content=BROKEN[name], headers=SAFETENSORS)
    assert_problem(answer, 422, "invalid-request", "body")


def test_the_default_body_limit_fits_a_latent_that_fills_the_model(start: Any) -> None:
    live = start(max_body_bytes="auto").wait_ready()
    info = InfoResponse.model_validate_json(live.http.get("/info").content)
    rows = matrix(MAX_MODEL_LEN)
    sent = json.dumps(body(latent(rows))).encode()
    assert len(base64.b64encode(rows.tobytes())) < len(sent) < info.limits.max_body_bytes
    answer = live.http.post(
        "/plan_latent", content=sent, headers={"Content-Type": "application/json"}
    )
    # It is read; with the markup around it, it is longer than the model reads.
    assert_problem(answer, 422, "prompt-too-long")
    answer = live.http.post(
        "/plan_latent",
        content=sent + b" " * info.limits.max_body_bytes,
        headers={"Content-Type": "application/json"},
    )
    assert_problem(answer, 413, "payload-too-large")


@pytest.mark.backends("local")
def test_latent_steps_come_before_the_tokens(server: LiveServer) -> None:
    steps = plan(server, {"task": "Go", **OPTIONS, "latent_steps": 3})
    assert (steps.usage.latent_steps, steps.usage.latent_rows) == (3, 7)
    assert steps.latent.alignment == "steps-then-predicts"
    alone = plan(server, {"task": "Go", **OPTIONS, "latent_steps": 3, "max_new_tokens": 0})
    assert (alone.plan, alone.finish_reason, alone.token_ids) == ("", "latent", [])
    np.testing.assert_allclose(rows_of(steps)[:3], rows_of(alone), atol=1e-5)
    assert plan(server, {"task": "Go", **OPTIONS}).latent.alignment == "predicts"


@pytest.mark.backends("local")
def test_latent_steps_are_streamed(server: LiveServer) -> None:
    options: Any = {**OPTIONS, "latent_steps": 2}
    with Client(server.url) as client:
        with client.stream_plan_latent("Go", **options) as stream:
            steps = list(stream)
        whole = client.plan_latent("Go", **options)
    assert [step.token_id is None for step in steps] == [True, True, False, False, False, False]
    np.testing.assert_array_equal(stream.plan.hidden_state, whole.hidden_state)
    assert stream.plan.token_ids == whole.token_ids


STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown bridge": ({"latent_steps": 1, "step_bridge": "none"}, "step_bridge"),
    "a negative number": ({"latent_steps": -1}, "latent_steps"),
    "a plan to score": ({"latent_steps": 1, "plan": "x"}, "latent_steps"),
}


@pytest.mark.backends("local")
@pytest.mark.parametrize("name", list(STEPS))
def test_latent_steps_that_cannot_run_are_refused(server: LiveServer, name: str) -> None:
    sent, field = STEPS[name]
    answer = server.http.post("/plan_latent", json={"task": "Go", **OPTIONS, **sent})
    assert_problem(answer, 422, "invalid-request", field)


@pytest.mark.backends("local")
def test_too_many_latent_steps_are_refused_with_both_numbers(server: LiveServer) -> None:
    sent = {"task": "Go", **OPTIONS, "latent_steps": MAX_MODEL_LEN}
    assert_problem(server.http.post("/plan_latent", json=sent), 422, "prompt-too-long")


@pytest.mark.backends("local")
def test_a_plan_is_scored_in_place_of_being_generated(server: LiveServer) -> None:
    import torch

    from support.tiny_models import build_model, build_tokenizer, llama_config

    tokenizer, model = build_tokenizer(), build_model(llama_config())
    asked = {"task": "Go", "prompt_template": "{task}", "chat_template": "none"}
    answer = plan(server, {**asked, "plan": "1. Fill it", "max_new_tokens": 1, "k": 3})
    prompt = tokenizer.encode("Go")
    given = tokenizer.encode("1. Fill it", add_special_tokens=False)
    with torch.inference_mode():
        out = model(torch.tensor([prompt + given]), output_hidden_states=True)
    logprobs = out.logits[0].log_softmax(-1)
    first = len(prompt) - 1
    expected = [float(logprobs[first + t, token]) for t, token in enumerate(given)]
    assert (answer.finish_reason, answer.plan, answer.token_ids) == ("given", "1. Fill it", given)
    assert answer.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert answer.logprob == pytest.approx(sum(expected), abs=1e-3)
    rows = out.hidden_states[-1][0, first : first + 3].numpy()
    np.testing.assert_allclose(rows_of(answer), rows, atol=1e-4)
