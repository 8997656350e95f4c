"""Chat completions through the openai package, over a real socket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import decode_hidden_state
from support.live_server import LiveServer
from support.openai_clients import MESSAGES, QWEN, async_client_of, client_of, row_of, rows_of
from support.requests import latent_of, plan_of
from support.tiny_shape import HIDDEN_SIZE, MAX_MODEL_LEN

pytestmark = pytest.mark.backends("fake", "local", "vllm")

SAMPLED: dict[str, Any] = {
    "messages": MESSAGES,
    "seed": 7,
    "temperature": 0.8,
    "top_p": 0.9,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {"5": 2},
}


def complete(live: LiveServer, latent: Any = None, extra: Any = None, **fields: Any) -> Any:
    body = {**QWEN, **({} if latent is None else {"latent": latent}), **(extra or {})}
    with client_of(live) as client:
        given = {"model": client.models.list().data[0].id, "messages": MESSAGES, **fields}
        answer = client.chat.completions.create(**given, extra_body=body)
        return list(answer) if fields.get("stream") else answer


def plan(live: LiveServer, **fields: Any) -> PlanLatentResponse:
    sent = {"messages": MESSAGES, **QWEN, **fields}
    return plan_of(live.http.post("/plan_latent", json=sent))


def assert_same(completion: Any, expected: PlanLatentResponse) -> None:
    (choice,) = completion.choices
    assert choice.message.content == expected.plan
    assert completion.usage.completion_tokens == expected.usage.completion_tokens
    assert completion.usage.prompt_tokens == expected.usage.prompt_tokens
    latent = choice.message.latent
    assert latent["latent"] == expected.latent.model_dump()
    assert latent["hidden_state"] == latent_of(expected).model_dump(mode="json")


def test_an_answer_is_that_of_plan_latent(server: LiveServer) -> None:
    completion = complete(server, {}, **SAMPLED, max_tokens=6)
    expected = plan(server, **SAMPLED, max_new_tokens=6)
    assert_same(completion, expected)
    assert completion.object == "chat.completion"
    assert abs(completion.created - time.time()) < 600
    assert completion.model == expected.model
    assert completion.system_fingerprint.startswith("fp_")
    assert completion.id.startswith("chatcmpl-")
    assert completion.seed == 7
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (usage.latent_rows, usage.latent_steps) == (6, 0)


def test_absent_fields_have_the_defaults_of_plan_latent(server: LiveServer) -> None:
    assert_same(
        complete(server, {}, seed=3, max_completion_tokens=5),
        plan(server, seed=3, max_new_tokens=5),
    )


def test_the_latent_is_sent_on_request_only(server: LiveServer) -> None:
    # Greedily: a drawn end token would leave fewer rows.
    message = complete(server, temperature=0, max_tokens=4).choices[0].message
    assert message.role == "assistant"
    assert "latent" not in message.model_dump()
    for latent, num_rows in (({"k": 2}, 2), ({"k": 0}, 0), ({"k": 99}, 4), ({}, 4)):
        completion = complete(server, latent, temperature=0, max_tokens=4)
        assert rows_of(completion.choices[0].message.latent).shape == (num_rows, HIDDEN_SIZE)
        assert completion.usage.latent_rows == num_rows


def test_a_stream_joins_to_the_answer(server: LiveServer) -> None:
    fields = {**SAMPLED, "max_tokens": 6}
    whole = complete(server, {"k": 3}, **fields)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = complete(server, {"k": 3}, **fields, **options)
    *head, usage = chunks
    assert usage.choices == []
    assert usage.usage.model_dump() == whole.usage.model_dump()
    assert all(chunk.usage is None for chunk in head)
    assert len({(c.id, c.created, c.system_fingerprint, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    deltas = [chunk.choices[0].delta for chunk in head]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    latents = [delta.model_extra["latent"] for delta in deltas if delta.model_extra]
    *rows, last = latents
    assert [row["index"] for row in rows] == [0, 1, 2]
    latent = whole.choices[0].message.latent
    assert np.array_equal(np.stack(list(map(row_of, rows))), rows_of(latent))
    assert last["latent"] == latent["latent"]
    assert last["hidden_state"]["shape"] == latent["hidden_state"]["shape"]
    reasons = [chunk.choices[0].finish_reason for chunk in head]
    assert reasons == [None] * (len(head) - 1) + [whole.choices[0].finish_reason]


def test_a_stream_without_options_has_text_alone(server: LiveServer) -> None:
    chunks = complete(server, max_tokens=3, temperature=0, stream=True)
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert not any(chunk.choices[0].delta.model_extra for chunk in chunks)
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


def test_a_stream_ends_with_done(server: LiveServer) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True, **QWEN}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


def test_the_async_client_gets_the_same(server: LiveServer) -> None:
    fields: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 5}
    model = server.service.info.model_id

    async def both() -> tuple[Any, list[Any]]:
        async with async_client_of(server) as client:
            create = client.chat.completions.create
            body = {**QWEN, "latent": {}}
            whole = await create(model=model, **fields, extra_body=body)
            stream = await create(model=model, **fields, extra_body=body, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(both())
    assert_same(whole, plan(server, temperature=0, max_new_tokens=5))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_the_finish_reason_is_openais(server: LiveServer) -> None:
    whole = complete(server, temperature=0, max_tokens=6)
    assert whole.choices[0].finish_reason == "length"
    text = whole.choices[0].message.content
    for stop in (text[1], [text[1], "never"]):
        stopped = complete(server, temperature=0, max_tokens=6, stop=stop)
        assert stopped.choices[0].finish_reason == "stop"
        assert stopped.choices[0].message.content == text[: text.index(text[1])]


@pytest.mark.backends("fake", "local")
def test_latent_steps_are_at_the_top_or_in_the_latent(server: LiveServer) -> None:
    steps = {"latent_steps": 3, "step_bridge": "norm"}
    expected = plan(server, temperature=0, max_new_tokens=2, **steps)
    for latent, extra in (({}, steps), (steps, {}), (steps, steps)):
        completion = complete(server, latent, extra, temperature=0, max_tokens=2)
        assert_same(completion, expected)
        assert completion.usage.latent_steps == 3
    alone = complete(server, steps, max_tokens=0)
    assert alone.choices[0].finish_reason == "stop"
    assert alone.choices[0].message.content == ""
    assert rows_of(alone.choices[0].message.latent).shape == (3, HIDDEN_SIZE)
    streamed = complete(server, steps, max_tokens=0, stream=True)
    assert streamed[-1].choices[0].finish_reason == "stop"


@pytest.mark.backends("fake", "local")
def test_an_answers_latent_is_a_part_of_the_next_content(server: LiveServer) -> None:
    latent = complete(server, {}, temperature=0, max_tokens=3).choices[0].message.latent
    content = [{"type": "text", "text": "Repeat: "}, {**latent, "bridge": "norm"}]
    messages = [{"role": "user", "content": content}]
    completion = complete(server, {}, messages=messages, temperature=0, max_tokens=4)
    assert_same(completion, plan(server, messages=messages, temperature=0, max_new_tokens=4))
    other = [{"role": "user", "content": content[:1]}]
    without = complete(server, {}, messages=other, temperature=0, max_tokens=4)
    assert completion.usage.prompt_tokens == without.usage.prompt_tokens + 3


def test_an_answers_message_can_be_sent_back(server: LiveServer) -> None:
    answer = complete(server, {}, temperature=0, max_tokens=3).choices[0].message
    more = {"role": "user", "content": "Go on."}
    text = {"role": "assistant", "content": answer.content}
    for message in (answer, answer.model_dump(), answer.model_dump(exclude_unset=True)):
        messages = [*MESSAGES, message, more]
        completion = complete(server, {}, messages=messages, temperature=0, max_tokens=2)
        expected = plan(server, messages=[*MESSAGES, text, more], temperature=0, max_new_tokens=2)
        assert_same(completion, expected)


def test_a_developer_is_read_as_system(server: LiveServer) -> None:
    by_role = [
        complete(
            server, {}, messages=[{"role": role, "content": "Short."}, *MESSAGES], temperature=0,
            max_tokens=3,
        )
        for role in ("developer", "system")
    ]  # fmt: skip
    first, second = (completion.choices[0].message.model_dump() for completion in by_role)
    assert first == second


def test_without_a_limit_the_answer_fills_what_is_left(server: LiveServer) -> None:
    # More than is left after the default of 512 tokens.
    messages = [{"role": "user", "content": "a" * (MAX_MODEL_LEN - 100)}]
    fields = {"logit_bias": {"0": 0}, "seed": 1, "messages": messages}
    completion = complete(server, **fields)
    assert completion.usage.total_tokens <= MAX_MODEL_LEN


def test_harmless_fields_have_no_effect(server: LiveServer) -> None:
    plain = complete(server, {}, temperature=0, max_tokens=3)
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "n": 1,
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
        "stop": None,
        "prompt_cache_key": "x",
    }
    # Earlier versions of the package do not know it.
    extra = {"prompt_cache_options": {"mode": "explicit"}}
    same = complete(server, {}, extra, temperature=0, max_tokens=3, **harmless)
    assert same.choices[0].model_dump() == plain.choices[0].model_dump()


def test_the_rows_are_those_of_the_stream_of_plan_latent(server: LiveServer) -> None:
    completion = complete(server, {}, temperature=0, max_tokens=4)
    expected = plan(server, temperature=0, max_new_tokens=4)
    rows = decode_hidden_state(latent_of(expected))
    assert np.array_equal(rows_of(completion.choices[0].message.latent), rows)
