"""Latent steps against a plain loop of one request at a time, and next to ordinary requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.engine.backend import FinishReason, Step
from latentwire_service.engine.errors import (
    LatentInvalidError,
    RequestCancelledError,
    StepBridgeError,
)
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from support.engine.architectures import SERVED
from support.engine.device import DEVICE, IS_EXACT, TOLERANCE
from support.engine.harness import EngineHarness
from support.engine.latent_reference import random_latent, reference
from support.engine.parity import assert_as_generated
from support.engine.requests import make_spec
from support.tiny_models import HIDDEN_SIZE, build_model, random_prompts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class Linear:
    """A bridge: a random row, about as large as an embedding, plus a small part of the given row.

    The parts are small because a random model is chaotic: it enlarges rounding tenfold in each step
    whose input is the row of the step before.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=generator)
        self.weight = weight.to(DEVICE)
        self.base = torch.tensor(random_latent(1, seed)[0], device=DEVICE)
        self.num_rows: list[int] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.dtype == torch.float32
        self.num_rows.append(len(rows))
        return self.of(rows)

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        made = rows @ self.weight
        return self.base + 0.05 * made / made.square().mean(-1, keepdim=True).sqrt()


def check(request: Request, model: Any) -> None:
    """Compare with the loop: tokens, rows, their number, and why generation ended."""
    completion, spec = request.future.result(timeout=0), request.spec
    bridge: Any = spec.step_bridge or Linear(0)
    max_new_tokens = spec.sampling.max_new_tokens
    expected = reference(model, spec.prompt, max_new_tokens, spec.latent_steps, bridge.of)
    assert completion.num_latent_steps == spec.latent_steps
    num_rows = spec.latent_steps + len(completion.token_ids)
    num_rows = num_rows if spec.k is None else min(spec.k, num_rows)
    assert completion.hidden_state.shape == (num_rows, HIDDEN_SIZE)
    if not max_new_tokens:
        assert completion.finish_reason is FinishReason.LATENT
        assert (completion.text, completion.token_ids) == ("", [])
    if IS_EXACT:
        assert completion.token_ids == expected.token_ids
    else:
        num_rows = min(num_rows, 1)
    scale = max(1.0, float(np.abs(expected.hidden_state).max()))
    # Rounding grows from one latent step to the next, so that relative errors say little.
    np.testing.assert_allclose(
        completion.hidden_state[:num_rows],
        expected.hidden_state[:num_rows],
        atol=TOLERANCE.value * scale,
        rtol=0,
    )


@pytest.mark.parametrize("name", SERVED)
def test_latent_steps_next_to_tokens_agree_with_the_loop(name: str) -> None:
    model = build_model(SERVED[name]())
    harness = EngineHarness(model, max_slots=3, prefill_chunk=13)
    bridge = Linear(1)
    text = random_prompts([5, 17, 9, 30])
    prompts = [
        Prompt(tuple(text[0])),
        Prompt(tuple(text[1])),
        Prompt.joined([text[2], random_latent(15), text[0]]),
        Prompt(tuple(text[3])),
    ]
    requests = []
    for prompt, steps, tokens in zip(prompts, (3, 0, 2, 1), (3, 6, 2, 0), strict=True):
        request = harness.submit(prompt, tokens, latent_steps=steps, step_bridge=bridge)
        requests.append(request)
        harness.engine.step()
    harness.run()
    for request in requests:
        check(request, model)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_model(SERVED["llama"]())


def test_sixteen_with_latent_steps_among_sixteen_ordinary_requests(llama: Any) -> None:
    harness = EngineHarness(llama, max_slots=12, prefill_chunk=32)
    bridges = [Linear(1), Linear(2), Linear(3)]
    rng = np.random.default_rng(0)
    ordinary, latent = [], []
    for index, prompt in enumerate(random_prompts(rng.integers(1, 60, size=32).tolist(), seed=4)):
        if index % 2:
            ordinary.append(harness.submit(prompt, 4 + index % 5))
        else:
            latent.append(
                harness.submit(
                    prompt,
                    (0, 1, 5)[index // 2 % 3],
                    (None, 0, 2)[index // 2 % 7 % 3],
                    latent_steps=1 + index // 2 % 5,
                    step_bridge=bridges[index // 2 % 3],
                )
            )
        harness.engine.step()
    harness.run()
    assert len(latent) == len(ordinary) == 16
    for request in latent:
        check(request, llama)
    for request in ordinary:
        assert_as_generated(request, llama)


def test_requests_with_one_bridge_are_computed_together(llama: Any) -> None:
    harness = EngineHarness(llama)
    shared, own = Linear(1), Linear(2)
    for bridge in (shared, shared, own, shared):
        harness.submit([5, 6, 7], 1, latent_steps=2, step_bridge=bridge)
    harness.run()
    assert (shared.num_rows, own.num_rows) == ([3, 3], [1, 1])


def test_the_last_step_of_a_request_without_tokens_needs_no_bridge(llama: Any) -> None:
    harness = EngineHarness(llama)
    bridge = Linear(1)
    request = harness.submit([5, 6, 7], 0, latent_steps=3, step_bridge=bridge)
    assert [harness.engine.step() is not None for _ in range(4)] == [True, True, True, False]
    assert bridge.num_rows == [1, 1]
    check(request, llama)


def test_a_stream_gets_the_latent_steps_first(llama: Any) -> None:
    harness = EngineHarness(llama)
    steps: list[Step] = []
    spec = make_spec([5, 6, 7], 2, k=3, latent_steps=2, step_bridge=Linear(1))
    request = harness.engine.new_request(spec, steps.append)
    harness.engine.add(request)
    harness.run()
    completion = request.future.result(0)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.token_id for step in steps] == [None, None, *completion.token_ids]
    assert [step.text for step in steps[:2]] == ["", ""]
    assert "".join(step.text for step in steps) == completion.text
    assert [step.row is None for step in steps] == [False, False, False, True]
    for step, row in zip(steps, completion.hidden_state, strict=False):
        assert step.row is not None
        np.testing.assert_array_equal(step.row, row)


def test_a_seed_draws_the_first_token_as_without_latent_steps(llama: Any) -> None:
    """The noise of a token counts tokens: latent steps do not shift it."""
    harness = EngineHarness(llama)
    sampling: dict[str, Any] = {"do_sample": True, "seed": 7, "temperature": 3.0}
    alone = harness.submit([5, 6], 6, latent_steps=2, step_bridge=Linear(1), **sampling)
    harness.run()
    again = harness.submit([5, 6], 6, latent_steps=2, step_bridge=Linear(1), **sampling)
    harness.submit([8, 9], 6, **sampling)
    harness.run()
    assert again.token_ids == alone.token_ids


class Spoils(Linear):
    """Gives no number for the first row of each call."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        made = super().__call__(rows)
        made[0] = torch.nan
        return made


class Raises(Linear):
    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError(f"{len(rows)} rows")


class OtherWidth(Linear):
    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return super().__call__(rows)[:, 1:]


class OtherType(Linear):
    def __call__(self, rows: torch.Tensor) -> Any:
        return super().__call__(rows).cpu().numpy()


def test_a_bridge_without_numbers_fails_that_request_alone(llama: Any) -> None:
    harness = EngineHarness(llama)
    spoils = Spoils(1)
    failing = harness.submit([5, 6], 3, latent_steps=2, step_bridge=spoils)
    others = [
        harness.submit([7], 3, latent_steps=1, step_bridge=spoils),
        harness.submit([9, 8], 3, latent_steps=2, step_bridge=Linear(2)),
        harness.submit([4, 5, 6], 3),
    ]
    harness.run()
    with pytest.raises(LatentInvalidError, match="the bridge of the latent steps gave values not"):
        failing.future.result(0)
    for request in others:
        check(request, llama)


@pytest.mark.parametrize("bridge", [Raises, OtherWidth, OtherType])
def test_a_bridge_that_fails_fails_its_requests_alone(llama: Any, bridge: type[Linear]) -> None:
    harness = EngineHarness(llama)
    failing = harness.submit([5, 6], 3, latent_steps=2, step_bridge=bridge(1))
    others = [
        harness.submit([9, 8], 3, latent_steps=2, step_bridge=Linear(2)),
        harness.submit([4, 5, 6], 3),
    ]
    harness.run()
    with pytest.raises(StepBridgeError, match="the bridge of the latent steps failed"):
        failing.future.result(0)
    assert not harness.engine._latents._inputs
    for request in others:
        check(request, llama)


def test_a_request_can_be_cancelled_in_a_latent_step(llama: Any) -> None:
    harness = EngineHarness(llama)
    cancelled = harness.submit([5, 6], 3, latent_steps=5, step_bridge=Linear(1))
    other = harness.submit([9, 8], 3, latent_steps=2, step_bridge=Linear(2))
    for _ in range(2):
        harness.engine.step()
    harness.engine.cancel(cancelled)
    harness.run()
    with pytest.raises(RequestCancelledError):
        cancelled.future.result(0)
    assert not harness.engine._latents._inputs
    check(other, llama)


def test_a_latent_that_the_model_cannot_compute_leaves_no_trace(llama: Any) -> None:
    """Numbers may grow beyond the largest one; the next request in the slot is not touched."""
    harness = EngineHarness(llama, max_slots=1, prefill_chunk=8)
    rows = np.full((20, HIDDEN_SIZE), np.nan, np.float32)
    prompt = Prompt.joined([[5, 6, 7], rows])
    failing, cancelled = (harness.submit(prompt, 3) for _ in range(2))
    while not failing.is_finished:
        harness.engine.step()
    for _ in range(2):
        harness.engine.step()
    assert 0 < cancelled.num_prefilled < len(prompt)
    harness.engine.cancel(cancelled)
    other = harness.submit(random_prompts([30])[0], 4)
    harness.run()
    with pytest.raises(LatentInvalidError, match="the model's hidden state is not finite"):
        failing.future.result(0)
    assert_as_generated(other, llama)


def test_statistics_count_latent_steps_apart(llama: Any) -> None:
    harness = EngineHarness(llama)
    harness.submit([5, 6], 2, latent_steps=2, step_bridge=Linear(1))
    harness.submit([5, 6], 1)
    stats = []
    while (step := harness.engine.step()) is not None:
        stats.append((step.num_new_tokens, step.num_latent_steps, len(step.first_token_s)))
    assert stats == [(1, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0)]
