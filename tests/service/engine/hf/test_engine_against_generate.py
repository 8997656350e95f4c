"""The engine's core promise: over slots, it generates the same as `generate` for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latentwire_service.engine.backend import FinishReason
from latentwire_service.engine.errors import RequestCancelledError
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.request import Request
from support.engine.device import DEVICE, DTYPE, needs_exact_tokens
from support.engine.harness import EngineHarness
from support.engine.parity import assert_as_generated, assert_same
from support.tiny_models import build_model, generate, llama_config, qwen2_config, random_prompts

LENGTHS = [1, 5, 17, 30, 64, 65, 100, 9]


@pytest.fixture(scope="module", params=[llama_config, qwen2_config])
def model(request: pytest.FixtureRequest) -> Any:
    return build_model(request.param())


def run_staggered(harness: EngineHarness, prompts: list[list[int]], budget: int) -> list[Request]:
    """Submit a prompt every third step, so that requests join while others decode."""
    requests: list[Request] = []
    for prompt in prompts:
        requests.append(harness.submit(prompt, budget + len(requests)))
        for _ in range(3):
            harness.engine.step()
    harness.run()
    return requests


def test_eight_staggered_prompts_in_four_slots_equal_generate(model: Any) -> None:
    harness = EngineHarness(model)
    for request in run_staggered(harness, random_prompts(LENGTHS), budget=12):
        assert_as_generated(request, model)


def test_prompts_submitted_together_equal_generate(model: Any) -> None:
    harness = EngineHarness(model)
    requests = [harness.submit(p, 10) for p in random_prompts(LENGTHS, seed=3)]
    harness.run()
    for request in requests:
        assert_as_generated(request, model)


@pytest.mark.parametrize("prefill_chunk", [1, 7, 256])
def test_prefill_chunk_changes_nothing(model: Any, prefill_chunk: int) -> None:
    harness = EngineHarness(model, prefill_chunk=prefill_chunk)
    requests = [harness.submit(p, 6) for p in random_prompts([40, 3, 23, 40, 11])]
    harness.run()
    for request in requests:
        assert_as_generated(request, model)


def test_a_slot_can_be_filled_to_its_last_position(model: Any) -> None:
    harness = EngineHarness(model, max_model_len=48, eos=())
    request = harness.submit(random_prompts([40])[0], 8)
    harness.run()
    assert len(request.future.result(timeout=0).token_ids) == 8
    assert_as_generated(request, model, eos_token_id=None)


@pytest.mark.parametrize("k", [0, 3, 1000])
def test_k_keeps_the_first_rows_and_the_whole_text(model: Any, k: int) -> None:
    harness = EngineHarness(model)
    requests = [harness.submit(p, 9, k=k) for p in random_prompts([4, 12])]
    harness.run()
    for request in requests:
        assert_as_generated(request, model, k=k)


def test_requests_with_different_k_share_a_batch(model: Any) -> None:
    harness = EngineHarness(model)
    ks = [0, 2, None, 5]
    requests = [harness.submit(p, 9, k=k) for p, k in zip(random_prompts([8] * 4), ks, strict=True)]
    harness.run()
    for request, k in zip(requests, ks, strict=True):
        assert_as_generated(request, model, k=k)


@needs_exact_tokens
def test_finish_reason_is_stop_at_eos_even_on_the_last_allowed_token(model: Any) -> None:
    prompt = random_prompts([10])[0]
    tokens = generate(model, prompt, 4, eos_token_id=None).token_ids
    assert tokens[3] not in tokens[:3], "this prompt cannot show the rule: choose another"
    for budget, reason in [
        (4, FinishReason.STOP),
        (8, FinishReason.STOP),
        (3, FinishReason.LENGTH),
    ]:
        harness = EngineHarness(model, eos=[tokens[3]])
        request = harness.submit(prompt, budget)
        harness.run()
        completion = request.future.result(timeout=0)
        assert completion.finish_reason is reason
        assert completion.token_ids == tokens[: min(budget, 4)]
        assert len(completion.hidden_state) == len(completion.token_ids)


SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.3, "top_p": 0.8, "seed": 1234}


@pytest.mark.parametrize(
    "params",
    [
        SAMPLING,
        SAMPLING | {"top_p": 1.0},
        SAMPLING | {"top_k": 5},
        SAMPLING | {"top_p": 1.0, "top_k": 12},
    ],
)
def test_a_seed_gives_the_same_tokens_alone_and_with_neighbours(
    model: Any, params: dict[str, Any]
) -> None:
    prompts = random_prompts([20, 6, 33, 50, 2, 14], seed=8)
    alone = EngineHarness(model)
    by_itself = alone.submit(prompts[0], 24, **params)
    alone.run()

    shared = EngineHarness(model)
    others = [shared.submit(p, 5 + i, **(params | {"seed": i})) for i, p in enumerate(prompts[1:])]
    for _ in range(4):
        shared.engine.step()
    with_neighbours = shared.submit(prompts[0], 24, **params)
    shared.run()

    expected = by_itself.future.result(timeout=0)
    actual = with_neighbours.future.result(timeout=0)
    assert_same(actual, expected)
    assert all(request.future.done() for request in others)


def test_another_seed_gives_other_tokens(model: Any) -> None:
    harness = EngineHarness(model, eos=())
    prompt = random_prompts([20])[0]
    first, second = (harness.submit(prompt, 24, **(SAMPLING | {"seed": s})) for s in (1, 2))
    harness.run()
    assert first.future.result(0).token_ids != second.future.result(0).token_ids


def test_temperature_zero_is_greedy(model: Any) -> None:
    harness = EngineHarness(model)
    request = harness.submit(random_prompts([13])[0], 10, do_sample=True, temperature=0.0)
    harness.run()
    assert_as_generated(request, model)


def test_cancelled_request_frees_its_slot_and_changes_no_other(model: Any) -> None:
    harness = EngineHarness(model, eos=())
    prompts = random_prompts([20, 30, 8, 41, 12])
    requests = [harness.submit(p, 16) for p in prompts]
    for _ in range(5):
        harness.engine.step()
    assert (harness.engine.num_running, harness.engine.num_waiting) == (4, 1)
    harness.engine.cancel(requests[0])
    harness.engine.cancel(requests[0])
    harness.engine.step()
    assert (harness.engine.num_running, harness.engine.num_waiting) == (4, 0)
    harness.run()
    with pytest.raises(RequestCancelledError):
        requests[0].future.result(timeout=0)
    assert harness.engine.num_running == 0
    for request in requests[1:]:
        assert_as_generated(request, model, eos_token_id=None)


def test_a_waiting_request_can_be_cancelled(model: Any) -> None:
    harness = EngineHarness(model, max_slots=1)
    first, second = (harness.submit(p, 3) for p in random_prompts([5, 6]))
    harness.engine.step()
    harness.engine.cancel(second)
    harness.run()
    assert_as_generated(first, model)
    assert isinstance(second.future.exception(timeout=0), RequestCancelledError)


class WordTokenizer:
    """Token n reads "wn ", so that stop strings can lie within and across tokens."""

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        return "".join(f"w{token_id} " for token_id in token_ids)


@needs_exact_tokens
def test_stop_string_ends_the_plan_before_it(model: Any) -> None:
    tokens = generate(model, random_prompts([10])[0], 30, eos_token_id=None).token_ids
    text = WordTokenizer().decode(tokens)
    # Across the third and fourth token, and as early as that: no shorter prefix holds it.
    stop = f"{tokens[2]} w{tokens[3]}"
    num_tokens = next(n for n in range(30) if stop in WordTokenizer().decode(tokens[:n]))
    harness = EngineHarness(model, eos=(), tokenizer=WordTokenizer())
    request = harness.submit(random_prompts([10])[0], 30, stop=("never to be seen", stop))
    harness.run()
    completion = request.future.result(timeout=0)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text == text[: text.index(stop)]
    assert completion.token_ids == tokens[:num_tokens]
    assert len(completion.hidden_state) == num_tokens


@pytest.mark.slow
@pytest.mark.demo_model
def test_demo_model_equals_generate() -> None:
    cache = Path.home() / ".cache/latentwire"
    loaded = load_model("demo", device=DEVICE, dtype=DTYPE, cache_dir=cache)
    tasks = [
        "Clean the kettle.",
        "Put a clean mug on the coffee table, then close the cupboard and turn off the light.",
        "Wash the red apple in the sink and put it into the refrigerator next to the milk.",
        "Heat a slice of bread in the microwave, and cool a potato in the fridge before lunch.",
        "Sort the laundry by colour.",
    ]
    prompts = [loaded.tokenizer.encode(task) for task in tasks]
    harness = EngineHarness(loaded.model, eos=loaded.eos_token_ids, tokenizer=loaded.tokenizer)
    for request in run_staggered(harness, prompts, budget=10):
        assert_as_generated(request, loaded.model)
