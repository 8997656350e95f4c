"""One engine for every decoder: it generates the same as the `generate` of each architecture.

Prompts of different lengths join while others decode. Some are longer than the sliding windows, and
all share slots. The engine names no architecture; these tests do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf import decode_step
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.model_runner import DecodeShape, HfModelRunner
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from latentwire_service.engine.runner import PromptPart, StepEmbeddings
from support.engine.architectures import (
    BASE,
    FALCON_LIKE,
    HIDDEN_SIZE,
    LENGTHS,
    LLAMA_LIKE,
    SERVED,
    WINDOW,
    ConfigBuilder,
    llama_like,
)
from support.engine.device import DEVICE, IS_EXACT, TOLERANCE
from support.engine.harness import EngineHarness
from support.engine.latent_reference import random_latent
from support.engine.parity import assert_as_generated
from support.tiny_models import VOCAB_SIZE, build_model, random_prompts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and lose much where others use the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def check_against_generate(model: Any, max_slots: int, prefill_chunk: int) -> None:
    harness = EngineHarness(model, max_slots=max_slots, prefill_chunk=prefill_chunk)
    requests: list[Request] = []
    for prompt in random_prompts(LENGTHS):
        requests.append(harness.submit(prompt, 6 + len(requests)))
        for _ in range(2):
            harness.engine.step()
    harness.run()
    tokens = set()
    for request in requests:
        assert_as_generated(request, model, is_scaled=True)
        tokens.update(request.token_ids)
    assert len(tokens) > 10, "greedy choices hardly vary, so that equal tokens say little"


@pytest.mark.parametrize("name", SERVED)
def test_staggered_prompts_in_few_slots_equal_generate(name: str) -> None:
    check_against_generate(build_model(SERVED[name]()), max_slots=3, prefill_chunk=64)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt-oss", "llama4", "gpt2", "falcon"])
def test_prompts_in_chunks_smaller_than_the_window_equal_generate(name: str) -> None:
    check_against_generate(build_model(SERVED[name]()), max_slots=4, prefill_chunk=13)


def test_the_reference_is_the_models_eager_attention() -> None:
    """A fused attention may leave out a part, as `sdpa` does with Gemma 2's soft cap."""
    model = build_model(SERVED["gemma2"]())
    expected = probe(model).hidden
    model.config._attn_implementation = "sdpa"
    probed = probe(model)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(probed.hidden, expected)
    build_runner(model, probed, max_slots=2, max_model_len=64)


REFUSED: dict[str, tuple[ConfigBuilder, str]] = {
    "alibi in code of its own": (
        partial(hf.FalconConfig, **FALCON_LIKE, alibi=True, multi_query=False),
        r"falcon is configured with linear position biases \(alibi\)",
    ),
    "windows counted from the end of the cache": (
        partial(
            hf.GPTNeoConfig,
            **BASE,
            hidden_size=HIDDEN_SIZE,
            num_layers=2,
            num_heads=6,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
        ),
        "gpt_neo computes other hidden states over slots than by itself",
    ),
    "bidirectional": (
        llama_like(hf.LlamaConfig, is_causal=False),
        "LlamaAttention needs attention that is not causal",
    ),
    "encoder": (
        partial(
            hf.BertConfig,
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=6,
            intermediate_size=96,
        ),
        "bert cannot be run as a decoder over slots",
    ),
    "recurrent": (
        partial(
            hf.RwkvConfig,
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            attention_hidden_size=HIDDEN_SIZE,
            num_hidden_layers=2,
        ),
        r"rwkv has layers without a standard KV cache \(empty after a pass: 0, 1\)",
    ),
    "without a cache": (
        partial(hf.OpenAIGPTConfig, vocab_size=VOCAB_SIZE, n_embd=48, n_layer=2, n_head=6),
        r"openai-gpt has layers without a standard KV cache \(empty after a pass: 0, 1\)",
    ),
    "hybrid": (
        llama_like(hf.RecurrentGemmaConfig),
        "recurrent_gemma has layers without a standard KV cache",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(case: str) -> None:
    config, reason = REFUSED[case]
    model = build_model(config())
    with pytest.raises(UnsupportedModelError, match=reason):
        build_runner(model, probe(model), max_slots=3, max_model_len=256)


@pytest.mark.parametrize("max_slots", [1, 2, 3])
def test_the_check_needs_no_number_of_slots(max_slots: int) -> None:
    EngineHarness(build_model(SERVED["llama"]()), max_slots=max_slots)


@pytest.mark.parametrize("name", ["llama-dynamic-rope", "phi3-longrope"])
def test_frequencies_that_follow_the_longest_sequence_limit_the_length(name: str) -> None:
    model = build_model(SERVED[name]())
    probed = probe(model)
    assert probed.max_positions == 256
    with pytest.raises(UnsupportedModelError, match="beyond 256 positions.*257 must not exceed"):
        build_runner(model, probed, max_slots=2, max_model_len=257)


def test_frequencies_that_never_change_limit_nothing() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
    for config in (
        hf.LlamaConfig(**LLAMA_LIKE),
        hf.LlamaConfig(**LLAMA_LIKE, rope_parameters=yarn),
    ):
        assert probe(build_model(config)).max_positions is None


class NoteLongest(torch.nn.Module):
    """An embedding that scales with the longest sequence of the batch."""

    def __init__(self, embedding: torch.nn.Module, limit: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.limit = limit

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        factor = 0.5 if position_ids.max() >= self.limit else 1.0
        cosine, sine = self.embedding(x, position_ids)
        return cosine * factor, sine


def test_whatever_depends_on_the_longest_neighbour_is_found_by_the_check() -> None:
    model = build_model(SERVED["llama"]())
    model.model.rotary_emb = NoteLongest(model.model.rotary_emb, limit=100)
    build_runner(copy.deepcopy(model), probe(model), max_slots=2, max_model_len=100)
    with pytest.raises(UnsupportedModelError, match="computes other hidden states over slots"):
        build_runner(model, probe(model), max_slots=2, max_model_len=101)


COMPILED = ["llama", "gemma2", "llama-dynamic-rope", "phi3-longrope", "falcon", "gpt2", "gpt-oss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_the_decode_step_traces_without_a_graph_break(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_for_real = torch.compile
    options_seen = []
    # A trace takes seconds. The first model is traced as in use, where rows and lengths become
    # dynamic when they vary; the others once, with dynamic ones from the start.
    is_dynamic = None if name == COMPILED[0] else True

    def compile_eagerly(step: Any, **options: Any) -> Any:
        options_seen.append(options)
        return compile_for_real(
            step, fullgraph=options["fullgraph"], backend="eager", dynamic=is_dynamic
        )

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    # What is recorded on a GPU is the subject of `test_decode_step.py`.
    monkeypatch.setattr(decode_step, "RecordedStep", lambda step, _record: step)
    if is_dynamic:
        few = [DecodeShape(3, 128, has_embeddings) for has_embeddings in (False, True)]
        monkeypatch.setattr(HfModelRunner, "warm_up_shapes", lambda _runner: few)
    torch._dynamo.reset()
    model = build_model(SERVED[name]())
    eager, compiled = (
        build_runner(copied, probe(copied), max_slots=3, max_model_len=128, compile_decode=on)
        for on, copied in ((False, copy.deepcopy(model)), (True, model))
    )
    # Steps over tokens, and those with embeddings.
    assert [options["fullgraph"] for options in options_seen] == [True, True]
    for runner in (eager, compiled):
        fill(runner)
    tokens, positions = np.array([7, 8, 9]), np.array([40, 3, 70])
    latent = torch.tensor(random_latent(3), device=DEVICE)
    mixed = StepEmbeddings(latent, torch.tensor([False, True, True], device=DEVICE))
    for step, embeddings in enumerate((None, mixed, None, mixed)):
        ours, theirs = (
            r.decode(tokens + step, positions + step, embeddings) for r in (compiled, eager)
        )
        largest = theirs.hidden.abs().max().item()
        torch.testing.assert_close(
            ours.hidden, theirs.hidden, atol=TOLERANCE.value * largest, rtol=0
        )
        if IS_EXACT:
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("max_slots", [3, 5])
def test_few_shapes_give_what_exact_ones_give(max_slots: int) -> None:
    model = build_model(SERVED["mistral"]())
    probed = probe(model)
    exact = build_runner(model, probed, max_slots, 500)
    # On what `build_runner` made of the model: only the shapes differ.
    coarse = HfModelRunner(
        model, probed.shapes, HIDDEN_SIZE, max_slots, 500, False, has_few_shapes=True
    )
    shapes = set()

    def seen(_module: object, _args: object, options: dict[str, Any]) -> None:
        cache = options["past_key_values"]
        shapes.add((*options["input_ids"].shape, cache.get_mask_sizes(1, 0)[0]))

    model.register_forward_pre_hook(seen, with_kwargs=True)
    coarse.warm_up()
    warm = set(shapes)
    assert warm == {
        (rows, 1, length)
        for rows in {1, 2, min(4, max_slots), max_slots}
        for length in (64, 128, 256, 500)
    }
    for runner in (exact, coarse):
        fill(runner)
    shapes.clear()
    for tokens, positions in (([7, 8, 9], [40, 3, 70]), ([7], [40]), ([7, 8], [40, 3])):
        ours, theirs = (r.decode(np.array(tokens), np.array(positions)) for r in (coarse, exact))
        torch.testing.assert_close(ours.hidden, theirs.hidden, atol=TOLERANCE.value, rtol=0)
        assert ours.logits.shape == theirs.logits.shape
        if IS_EXACT:
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)


def fill(runner: HfModelRunner) -> None:
    for slot, prompt in enumerate(random_prompts([40, 3, 70])):
        runner.prefill([PromptPart(slot, Prompt(tuple(prompt)), 0)])
