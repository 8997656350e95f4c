"""A tiny Llama in vLLM answers what Hugging Face `generate` does, whatever the scheduler does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import decode_hidden_state
from support.engine.vllm_models import (
    CACHE_POSITIONS,
    MAX_SLOTS,
    NEEDS_VLLM,
    PREFILL_CHUNK,
    Reference,
    body_of,
)
from support.gate import TIMEOUT_S
from support.latent_requests import latent, matrix
from support.live_server import LiveServer
from support.requests import assert_problem, plan_of

pytestmark = [pytest.mark.vllm, NEEDS_VLLM, pytest.mark.timeout(2400)]

TOLERANCE = 2e-3
LETTERS = "the quick brown fox jumps over a lazy dog and then it sleeps near the warm river bank "


@pytest.fixture(scope="module")
def reference(kind: str) -> Reference:
    return Reference(kind)


def post(live: LiveServer, task: str, max_new_tokens: int, **fields: Any) -> PlanLatentResponse:
    k = fields.pop("k", None)
    params = {} if k is None else {"k": k}
    answer = live.http.post(
        "/plan_latent", json=body_of(task, max_new_tokens, **fields), params=params
    )
    return plan_of(answer)


def rows_of(plan: PlanLatentResponse) -> Any:
    assert plan.hidden_state is not None
    return decode_hidden_state(plan.hidden_state)


def wait_idle(live: LiveServer) -> None:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        occupancy = live.service.occupancy
        if occupancy is not None and not occupancy.num_running + occupancy.num_waiting:
            return
        time.sleep(0.05)
    raise AssertionError("the service is still busy")


def counter(name: str) -> float:
    """The value of one of vLLM's own counters, which are of the process."""
    from prometheus_client import REGISTRY

    samples = [each for metric in REGISTRY.collect() for each in metric.samples]
    return sum(each.value for each in samples if each.name == f"vllm:{name}_total")


def test_sixteen_staggered_requests_in_four_slots_are_those_of_generate(
    served: LiveServer, reference: Reference
) -> None:
    text = LETTERS * 3
    work = [(text[i : i + 7 + 5 * i], 100 - 5 * i if i % 2 else 8 + i) for i in range(16)]
    # Prompts of several chunks, and more positions at a time than the cache has.
    assert max(len(task) for task, _ in work) > 2 * PREFILL_CHUNK
    longest = sorted((len(task) + n for task, n in work), reverse=True)[:MAX_SLOTS]
    assert sum(longest) > CACHE_POSITIONS

    def run(index: int) -> PlanLatentResponse:
        time.sleep(0.05 * index)
        return post(served, *work[index])

    with ThreadPoolExecutor(len(work)) as pool:
        plans = list(pool.map(run, range(len(work))))
    for (task, max_new_tokens), plan in zip(work, plans, strict=True):
        expected = reference.generate(task, max_new_tokens)
        assert plan.token_ids == expected.token_ids
        assert plan.usage.prompt_tokens == len(task)
        np.testing.assert_allclose(rows_of(plan), expected.hidden_state, atol=TOLERANCE)


@pytest.mark.parametrize("num_same", [MAX_SLOTS])
def test_rows_are_right_when_the_cache_is_too_small_for_what_runs(
    served: LiveServer, reference: Reference, num_same: int
) -> None:
    tasks = [LETTERS[start : start + 60] for start in range(num_same)]
    assert num_same * (60 + 110) > 2 * CACHE_POSITIONS
    before = counter("num_preemptions")
    with ThreadPoolExecutor(num_same) as pool:
        plans = list(pool.map(lambda task: post(served, task, 110), tasks))
    assert counter("num_preemptions") > before
    for task, plan in zip(tasks, plans, strict=True):
        expected = reference.generate(task, 110)
        assert plan.token_ids == expected.token_ids
        np.testing.assert_allclose(rows_of(plan), expected.hidden_state, atol=TOLERANCE)


@pytest.mark.parametrize(("k", "num_rows"), [(0, 0), (3, 3), (100, 9)])
def test_k_rows_come_back(served: LiveServer, reference: Reference, k: int, num_rows: int) -> None:
    plan = post(served, "sleep near", 9, k=k)
    expected = reference.generate("sleep near", 9)
    assert plan.token_ids == expected.token_ids
    assert rows_of(plan).shape == (num_rows, 128)
    np.testing.assert_allclose(rows_of(plan), expected.hidden_state[:num_rows], atol=TOLERANCE)


def test_a_stream_has_the_same_tokens_and_rows(served: LiveServer) -> None:
    from latentwire import Client

    whole = post(served, "a lazy dog", 12)
    with Client(served.url) as client:
        options = body_of("a lazy dog", 12)
        stream = client.stream_plan_latent(options.pop("task"), **options)
        steps = list(stream)
    assert [step.token_id for step in steps] == whole.token_ids
    rows = [step.hidden_row for step in steps if step.hidden_row is not None]
    np.testing.assert_allclose(np.stack(rows), rows_of(whole), atol=TOLERANCE)
    assert "".join(step.text for step in steps) == whole.plan


def test_a_stop_string_cuts_text_tokens_and_rows(served: LiveServer, reference: Reference) -> None:
    whole = post(served, "the warm river", 30)
    stop = whole.plan[4:7]
    cut = post(served, "the warm river", 30, stop=[stop])
    assert cut.finish_reason == "stop"
    assert cut.plan == whole.plan[: whole.plan.index(stop)]
    num_tokens = len(cut.token_ids)
    assert num_tokens < 30
    assert cut.token_ids == whole.token_ids[:num_tokens]
    expected = reference.generate("the warm river", 30).hidden_state[:num_tokens]
    np.testing.assert_allclose(rows_of(cut), expected, atol=TOLERANCE)


def test_a_stop_token_ends_the_plan(served: LiveServer) -> None:
    whole = post(served, "quick", 20)
    stop = whole.token_ids[6]
    cut = post(served, "quick", 20, stop_token_ids=[stop])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert cut.finish_reason == "stop"


def test_penalties_are_those_of_generate(served: LiveServer, reference: Reference) -> None:
    plan = post(served, "brown fox", 20, repetition_penalty=1.4)
    expected = reference.generate("brown fox", 20, repetition_penalty=1.4)
    assert plan.token_ids == expected.token_ids


def test_logit_bias_and_seeds(served: LiveServer) -> None:
    assert post(served, "fox", 4, logit_bias={"70": 100.0}).token_ids == [70] * 4
    sampled = [
        post(served, "fox", 16, temperature=1.0, top_p=0.9, seed=seed).token_ids
        for seed in (5, 5, 6)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_info_and_the_declaration_name_the_engine(served: LiveServer) -> None:
    import vllm

    info = served.http.get("/info").json()
    assert (info["engine"], info["engine_version"]) == ("vllm", vllm.__version__)
    assert info["capabilities"] == []
    assert set(info["refusals"]) == {
        *("latents-in", "latent-steps", "scoring"),
        *("temperature", "presence_penalty", "frequency_penalty"),
    }
    assert all("the vLLM engine" in reason for reason in info["refusals"].values())
    assert (info["limits"]["max_slots"], info["limits"]["max_model_len"]) == (4, 192)
    plan = post(served, "fox", 2)
    assert plan.latent.engine == f"vllm {vllm.__version__}"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"latent_steps": 2}, "latent_steps"),
        ({"plan": "given"}, "plan"),
        ({"temperature": 3.0}, "temperature"),
        ({"temperature": 0.001}, "temperature"),
        (
            {"task": None, "messages": [{"role": "user", "content": [latent(matrix(2, 128))]}]},
            "messages.0.content.0",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    served: LiveServer, fields: dict[str, Any], field: str
) -> None:
    body = {"task": "x", "max_new_tokens": 4} | fields
    sent = {name: value for name, value in body.items() if value is not None}
    answer = served.http.post("/plan_latent", json=sent)
    detail = assert_problem(answer, 422, "invalid-request", field).detail
    assert "the vLLM engine" in detail
    # A client can know it before.
    reasons = served.http.get("/info").json()["refusals"].values()
    assert any(reason in detail for reason in reasons)


def test_a_prompt_that_does_not_fit_is_refused(served: LiveServer) -> None:
    answer = served.http.post("/plan_latent", json=body_of("x" * 180, 20))
    assert_problem(answer, 422, "prompt-too-long")


def test_a_caller_that_leaves_frees_its_slot(served: LiveServer) -> None:
    body = body_of("x" * 20, 150, stream=True)
    with served.http.stream("POST", "/plan_latent", json=body) as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("data: "):
            pass
    wait_idle(served)
    assert post(served, "fox", 3).usage.completion_tokens == 3


def test_a_deadline_ends_a_request(served: LiveServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(post, served, "y" * 30, 120) for _ in range(4)]
        answer = served.http.post(
            "/plan_latent", json=body_of("x" * 30, 150), headers={"X-Request-Timeout": "0.05"}
        )
        assert_problem(answer, 504, "deadline-exceeded")
        assert {len(each.result().token_ids) for each in others} == {120}
    wait_idle(served)


def test_a_repeated_prompt_reads_its_cached_prefix(
    served: LiveServer, reference: Reference
) -> None:
    task = LETTERS[:80]
    before = counter("prefix_cache_hits")
    plans = [post(served, task, 5) for _ in range(2)]
    assert counter("prefix_cache_hits") >= before + 64
    expected = reference.generate(task, 5)
    for plan in plans:
        assert plan.token_ids == expected.token_ids
        np.testing.assert_allclose(rows_of(plan), expected.hidden_state, atol=TOLERANCE)


def test_draining_finishes_what_runs(served: LiveServer) -> None:
    while served.watch.submitted.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, served, "z" * 30, 100)
        assert served.watch.submitted.acquire(timeout=TIMEOUT_S)
        assert served.service.drain(120)
        assert len(running.result().token_ids) == 100
    assert_problem(served.http.get("/ready"), 503, "not-ready")
