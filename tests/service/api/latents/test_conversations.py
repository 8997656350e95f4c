"""Messages and latents in requests over a real socket."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from latentwire import Client
from latentwire.number_formats import NUMBER_FORMATS, NumberFormat
from latentwire.protocol import InfoResponse, PlanLatentResponse
from latentwire.safetensors_wire import pack_request
from latentwire.tensors import decode_hidden_state, encode_hidden_state
from support.latent_requests import OPTIONS, SAFETENSORS, body, latent, matrix, plan
from support.live_server import LiveServer
from support.requests import assert_problem, latent_of
from support.tiny_shape import HIDDEN_SIZE, MAX_MODEL_LEN

pytestmark = pytest.mark.backends("fake", "local")


def same(first: PlanLatentResponse, second: PlanLatentResponse) -> bool:
    return first.token_ids == second.token_ids and np.array_equal(rows_of(first), rows_of(second))


def rows_of(answer: PlanLatentResponse) -> Any:
    return decode_hidden_state(latent_of(answer))


@pytest.mark.backends("fake", "local", "vllm")
def test_one_message_is_the_task_in_its_template(server: LiveServer) -> None:
    asked = plan(server, {"task": "Go", "prompt_template": "{task}", **OPTIONS})
    for content in ("Go", [{"type": "text", "text": "G"}, {"type": "text", "text": "o"}]):
        sent = {"messages": [{"role": "user", "content": content}], **OPTIONS}
        answer = plan(server, sent)
        assert same(answer, asked)
        assert answer.task is None
        assert answer.usage.prompt_tokens == asked.usage.prompt_tokens


@pytest.mark.backends("fake", "local", "vllm")
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


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_rows_of_any_dtype_are_read_as_the_float32_rows_that_they_mean(
    server: LiveServer, dtype: NumberFormat
) -> None:
    sent = encode_hidden_state(matrix(3), dtype)
    meant = plan(server, body(latent(decode_hidden_state(sent))))
    answer = plan(server, body(latent(hidden_state=sent.model_dump(mode="json"))))
    assert same(answer, meant)
    assert answer.usage.prompt_tokens == meant.usage.prompt_tokens


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


def test_a_latent_longer_than_the_model_reads_is_refused_with_both_numbers(
    server: LiveServer,
) -> None:
    rows = {"data": "", "shape": [MAX_MODEL_LEN + 1, HIDDEN_SIZE]}
    answer = server.http.post("/plan_latent", json=body(latent(hidden_state=rows)))
    problem = assert_problem(answer, 422, "prompt-too-long")
    assert (problem.prompt_tokens, problem.max_model_len) == (MAX_MODEL_LEN + 1, MAX_MODEL_LEN)


@pytest.mark.backends("fake", "local", "vllm")
def test_ten_thousand_parts_are_refused(server: LiveServer) -> None:
    parts = [{"type": "text", "text": "x"}] * 10_000
    answer = server.http.post("/plan_latent", json=body(*parts[:1000]))
    assert_problem(answer, 422, "invalid-request", "messages.0.content")
    answer = server.http.post("/plan_latent", json=body(*parts))
    assert_problem(answer, 413, "payload-too-large")


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


def test_a_plan_that_does_not_fit_is_refused_with_its_tokens(server: LiveServer) -> None:
    answer = server.http.post("/plan_latent", json={"task": "Go", "plan": "x" * MAX_MODEL_LEN})
    problem = assert_problem(answer, 422, "prompt-too-long")
    assert f"the plan {MAX_MODEL_LEN}; together they must not" in problem.detail


@pytest.mark.backends("local")
def test_steps_that_do_not_fit_are_not_counted_as_tokens(server: LiveServer) -> None:
    sent = {"task": "Go", "latent_steps": MAX_MODEL_LEN, "max_new_tokens": 3}
    problem = assert_problem(server.http.post("/plan_latent", json=sent), 422, "prompt-too-long")
    assert f"latent_steps is {MAX_MODEL_LEN} and max_new_tokens is 3" in problem.detail
