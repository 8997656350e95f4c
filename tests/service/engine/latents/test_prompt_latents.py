"""Prompts that hold embeddings, next to prompts of tokens, against passes of one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from latentwire_service.engine.runner import PromptPart
from support.engine.architectures import HIDDEN_SIZE, SERVED
from support.engine.device import IS_EXACT, TOLERANCE, needs_exact_tokens
from support.engine.harness import EngineHarness
from support.engine.latent_reference import embedded, random_latent, reference
from support.engine.parity import assert_as_generated, assert_rows_close
from support.tiny_models import build_model, random_prompts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def mixed_prompts() -> list[Prompt]:
    """With latents at the start, inside, twice, at the end, and alone; and without any."""
    text = [tuple(prompt) for prompt in random_prompts([6, 30, 4, 41, 3], seed=5)]
    return [
        Prompt.joined([text[0], random_latent(21), text[2]]),
        Prompt(text[1]),
        Prompt.joined([random_latent(5, 1), text[3]]),
        Prompt.joined([text[0], random_latent(1, 2), text[2], random_latent(33, 3), text[4]]),
        Prompt(text[4]),
        Prompt.joined([text[1], random_latent(17, 4)]),
        Prompt.joined([random_latent(9, 6)]),
    ]


def assert_as_reference(request: Request, model: Any) -> None:
    completion = request.future.result(timeout=0)
    expected = reference(model, request.spec.prompt, request.spec.sampling.max_new_tokens)
    if IS_EXACT:
        assert completion.token_ids == expected.token_ids
    num_rows = len(expected.hidden_state) if IS_EXACT else 1
    scale = max(1.0, float(np.abs(expected.hidden_state).max()))
    actual = completion.hidden_state[:num_rows]
    assert_rows_close(actual, expected.hidden_state[:num_rows], scale)


@pytest.mark.parametrize("name", SERVED)
def test_staggered_prompts_with_and_without_latents_agree_with_one_at_a_time(name: str) -> None:
    model = build_model(SERVED[name]())
    # Chunks are shorter than most latents, so that borders lie inside them.
    harness = EngineHarness(model, max_slots=4, prefill_chunk=13)
    requests = []
    for prompt in mixed_prompts():
        requests.append(harness.submit(prompt, 4))
        harness.engine.step()
    harness.run()
    for request in requests:
        assert_as_reference(request, model)


@pytest.mark.parametrize("name", SERVED)
def test_keys_and_values_agree_with_a_pass_over_embeddings(name: str) -> None:
    model = build_model(SERVED[name]())
    runner = EngineHarness(model, max_slots=7).runner
    prompts = mixed_prompts()
    output = runner.prefill([PromptPart(slot, prompt, 0) for slot, prompt in enumerate(prompts)])
    for slot, prompt in enumerate(prompts):
        cache: Any = DynamicCache(config=model.config)
        with torch.inference_mode():
            expected = model(
                inputs_embeds=embedded(model, prompt),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
        states = runner._cache.read(slot, len(prompt))
        theirs = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        pairs = [(output.hidden[slot], expected.hidden_states[-1][0, -1])]
        for own, their in zip(states, theirs, strict=True):
            # A layer with a sliding window keeps the positions in it alone.
            num_kept = their.shape[2]
            assert num_kept
            pairs.append((own[:, len(prompt) - num_kept :], their[0]))
        for actual, wanted in pairs:
            largest = max(1.0, float(wanted.abs().max()))
            tolerance = TOLERANCE.value * largest
            torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build_model(SERVED["llama"]())


@needs_exact_tokens
def test_the_embeddings_of_tokens_give_what_the_tokens_give(llama: Any) -> None:
    tokens = random_prompts([24])[0]
    rows = embedded(llama, Prompt(tuple(tokens)))[0].float().cpu().numpy()
    harness = EngineHarness(llama)
    requests = [
        harness.submit(prompt, 8)
        for prompt in (
            Prompt(tuple(tokens)),
            Prompt.joined([rows]),
            Prompt.joined([tokens[:5], rows[5:20], tokens[20:]]),
        )
    ]
    harness.run()
    assert_as_generated(requests[0], llama)
    for request in requests[1:]:
        assert request.token_ids == requests[0].token_ids
        rows, expected = (r.future.result(0).hidden_state for r in (request, requests[0]))
        assert_rows_close(rows, expected)


@needs_exact_tokens
def test_equal_text_before_different_latents_is_computed_once(llama: Any) -> None:
    harness = EngineHarness(llama)
    text = random_prompts([40])[0]
    prompts = [Prompt.joined([text, random_latent(12, seed), text[:3]]) for seed in range(4)]
    requests, num_prompt_tokens = [], 0
    for prompt in prompts:
        requests.append(harness.submit(prompt, 3))
        while (stats := harness.engine.step()) is not None:
            num_prompt_tokens += stats.num_prompt_tokens
    for request in requests:
        assert_as_reference(request, llama)
    # The first two teach the prefix, which ends where the latent begins.
    assert num_prompt_tokens == 2 * 55 + 2 * 15


@needs_exact_tokens
def test_penalties_do_not_count_the_positions_of_a_latent(llama: Any) -> None:
    text = random_prompts([8])[0]
    prompt = Prompt.joined([text[:4], random_latent(6), text[4:]])
    changes = EngineHarness(llama).engine._changes
    harness = EngineHarness(llama)
    request = harness.submit(prompt, 4, repetition_penalty=1e6, presence_penalty=1.0)
    logits = changes.apply([request], torch.ones(1, llama.config.vocab_size)).logits
    assert set(torch.nonzero(logits[0] < 1)[:, 0].tolist()) == set(text)
    harness.run()
    assert len(request.future.result(0).token_ids) == 4


class NeedsIds(torch.nn.Module):
    """A model with a table that it looks up by the token ids."""

    def __init__(self, model: Any, error: type[Exception] | None) -> None:
        super().__init__()
        self.model, self.error, self.forward_model = model, error, model.forward

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **options: Any) -> Any:
        if inputs_embeds is not None:
            if self.error is not None:
                raise self.error("no ids")
            return self.forward_model(inputs_embeds=inputs_embeds * 1.5, **options)
        return self.forward_model(input_ids=input_ids, **options)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "it computes other hidden states from embeddings than from their tokens"),
        (ValueError, "it takes no input embeddings (ValueError: no ids)"),
        (KeyError, "it takes no input embeddings (KeyError: 'no ids')"),
    ],
)
def test_a_model_that_needs_token_ids_is_served_without_latents(
    error: type[Exception] | None, reason: str
) -> None:
    model = build_model(SERVED["llama"]())
    model.forward = NeedsIds(model, error).forward
    probed = probe(model)
    assert probed.embedding_refusal == reason
    assert probed.embedding_size == HIDDEN_SIZE
