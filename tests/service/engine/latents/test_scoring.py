"""Given plans: their likelihood and their rows, against a pass of the model's own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.engine.backend import FinishReason, Step
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.errors import InvalidParamsError, LatentInvalidError
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from support.engine.architectures import SERVED
from support.engine.device import IS_EXACT, TOLERANCE
from support.engine.fake_runner import FakeModelRunner
from support.engine.harness import EngineHarness
from support.engine.latent_reference import embedded, random_latent
from support.engine.parity import assert_as_generated
from support.engine.requests import NumberTokenizer, make_spec
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, build_model, random_prompts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@torch.inference_mode()
def check(request: Request, model: Any) -> None:
    """Compare with one pass over prompt and plan."""
    completion, spec = request.future.result(timeout=0), request.spec
    given = spec.given_token_ids
    assert given is not None
    assert completion.token_ids == list(given)
    assert completion.finish_reason is FinishReason.GIVEN
    assert completion.prompt_tokens == len(spec.prompt)
    whole = spec.prompt.followed_by(given)
    output = model(inputs_embeds=embedded(model, whole), use_cache=False, output_hidden_states=True)
    start, end = len(spec.prompt) - 1, len(whole) - 1
    expected = output.logits[0, start:end].float().log_softmax(-1)
    expected = expected.gather(1, torch.tensor(given, device=expected.device)[:, None])[:, 0]
    rows = output.hidden_states[-1][0, start:end].float().cpu().numpy()
    num_rows = len(given) if spec.k is None else min(spec.k, len(given))
    assert completion.hidden_state.shape == (num_rows, HIDDEN_SIZE)
    scale = max(1.0, float(np.abs(rows).max()))
    np.testing.assert_allclose(
        completion.hidden_state, rows[:num_rows], atol=TOLERANCE.value * scale, rtol=0
    )
    assert completion.token_logprobs is not None
    assert len(completion.token_logprobs) == len(given)
    if IS_EXACT:
        # The logits of the random models are large.
        largest = max(1.0, float(output.logits.abs().max()))
        wanted = expected.cpu().numpy()
        np.testing.assert_allclose(completion.token_logprobs, wanted, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("name", SERVED)
def test_given_plans_next_to_ordinary_requests_agree_with_one_pass(name: str) -> None:
    model = build_model(SERVED[name]())
    harness = EngineHarness(model, max_slots=3, prefill_chunk=13)
    text = random_prompts([5, 17, 30, 9, 1, 40])
    scored, ordinary = [], []
    for prompt, given, k in (
        (Prompt(tuple(text[0])), text[2], None),
        (Prompt.joined([text[1], random_latent(15), text[0]]), text[5], 3),
        (Prompt(tuple(text[4])), text[4], None),
        (Prompt.joined([random_latent(4)]), text[1], 0),
    ):
        scored.append(harness.submit(prompt, 1, k, given=given))
        ordinary.append(harness.submit(text[3], 4))
        harness.engine.step()
    harness.run()
    for request in scored:
        check(request, model)
    for request in ordinary:
        assert_as_generated(request, model, is_scaled=True)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_model(SERVED["llama"]())


def watch_logits(harness: EngineHarness) -> list[int]:
    """Note how many positions each prefill has logits for."""
    seen = []

    def note(_module: object, _args: object, output: Any) -> None:
        if output.logits.shape[1] > 1:
            seen.append(output.logits.shape[0] * output.logits.shape[1])

    harness.runner._model.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("max_outputs", [1, 20, 64, 1000])
def test_a_long_plan_is_scored_in_chunks_of_bounded_memory(
    llama: Any, max_outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "latentwire_service.engine.hf.model_runner._MAX_LOGITS", max_outputs * VOCAB_SIZE
    )
    harness = EngineHarness(llama, prefill_chunk=50)
    assert harness.runner.max_outputs == max_outputs
    seen = watch_logits(harness)
    prompt, *plans = random_prompts([20, 200, 130, 7], seed=3)
    requests = [harness.submit(prompt, 1, given=plan) for plan in plans]
    requests.append(harness.submit(Prompt.joined([prompt, random_latent(30)]), 1, given=plans[1]))
    harness.run()
    for request in requests:
        check(request, llama)
    assert all(number <= max_outputs for number in seen)
    assert bool(seen) == (max_outputs > 1)


def test_a_kept_prefix_serves_scored_and_generated_plans(llama: Any) -> None:
    harness = EngineHarness(llama)
    prompt, *plans = random_prompts([40, 9, 9, 9], seed=6)
    num_prompt_tokens = []
    requests = []
    for plan in plans:
        requests.append(harness.submit(prompt, 1, given=plan))
        num_prompt_tokens.append(0)
        while (stats := harness.engine.step()) is not None:
            num_prompt_tokens[-1] += stats.num_prompt_tokens
            assert (stats.num_new_tokens, list(stats.first_token_s)) == (0, [])
    ordinary = harness.submit(prompt, 3)
    harness.run()
    for request in requests:
        check(request, llama)
    assert_as_generated(ordinary, llama)
    # The last position of the prompt is computed again: it predicts the first token.
    assert num_prompt_tokens == [48, 48, 9]


def test_changes_to_logits_do_not_count(llama: Any) -> None:
    harness = EngineHarness(llama)
    plan = random_prompts([12])[0]
    changes: dict[str, Any] = {"repetition_penalty": 3.0, "logit_bias": ((plan[0], -100.0),)}
    changes |= {"temperature": 9.0, "top_k": 1, "do_sample": True, "stop_token_ids": (plan[3],)}
    request = harness.submit([5, 6, 7], 1, given=plan, **changes)
    harness.run()
    check(request, llama)


def test_a_stream_gets_each_given_token(llama: Any) -> None:
    harness = EngineHarness(llama, prefill_chunk=5)
    steps: list[Step] = []
    plan = random_prompts([12])[0]
    request = harness.engine.new_request(make_spec([5, 6], 1, k=3, given=plan), steps.append)
    harness.engine.add(request)
    harness.run()
    completion = request.future.result(0)
    assert [step.index for step in steps] == list(range(12))
    assert [step.token_id for step in steps] == plan
    assert "".join(step.text for step in steps) == completion.text
    assert [step.row is not None for step in steps] == [True] * 3 + [False] * 9


def scripted(**options: Any) -> Engine:
    runner = FakeModelRunner(max_slots=2, **options)
    return Engine(runner, NumberTokenizer(), frozenset(), 16, lambda: 0.0)


def run(engine: Engine, given: Sequence[int], prompt: Sequence[int] = (3, 4)) -> Request:
    request = engine.new_request(make_spec(prompt, 1, given=given, stop=("6",)))
    engine.add(request)
    while engine.step() is not None:
        pass
    return request


def test_the_text_of_a_given_plan_is_whole() -> None:
    completion = run(scripted(), [5, 6, 7, 40]).future.result(0)
    assert completion.text == "5 6 7 40 "
    assert completion.token_logprobs is not None
    # The script's own next tokens are likely, another is not.
    assert [logprob > -1 for logprob in completion.token_logprobs] == [True, True, True, False]


def test_a_row_that_is_not_finite_fails_the_request_alone() -> None:
    engine = scripted(poison=9)
    other = engine.new_request(make_spec([20], 3))
    engine.add(other)
    failing = run(engine, [5, 9, 7])
    with pytest.raises(LatentInvalidError):
        failing.future.result(0)
    assert other.future.result(0).token_ids == [21, 22, 23]
    assert run(engine, [5, 6]).future.result(0).token_ids == [5, 6]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("plan", {"given": []}),
        ("latent_steps", {"given": [5], "latent_steps": 1, "step_bridge": lambda rows: rows}),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamsError) as caught:
        make_spec([5], 1, **options)
    assert caught.value.field == field
