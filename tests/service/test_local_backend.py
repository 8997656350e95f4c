"""From settings and a model to a plan of the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service import local_backend
from latentwire_service.engine.backend import LATENT_STEPS, LATENTS_IN, SCORING
from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.engine.hf.cpu.linear import can_pack
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.hf.probe import Probe, probe
from latentwire_service.engine.prefix_cache import MAX_PREFIX_TOKENS
from latentwire_service.engine.prompt import Prompt
from latentwire_service.local_backend import LocalBackend
from latentwire_service.settings import Settings
from support.engine.requests import make_spec
from support.tiny_models import qwen2_config, save_model
from support.tiny_shape import HIDDEN_SIZE, VOCAB_SIZE


def test_memory_that_is_taken_later_is_not_in_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = 2**30
    monkeypatch.setattr(local_backend, "available_bytes", lambda _device: available)
    folder = save_model(tmp_path / "tied", qwen2_config(num_hidden_layers=3))
    settings = Settings(model=str(folder), memory_fraction=0.5, dtype="fp32", device="cpu")
    device = torch.device("cpu")
    loaded = load_model(str(folder), device=device, dtype=torch.float32, cache_dir=tmp_path)
    capacity = local_backend.plan_slots(settings, loaded, probe(loaded.model))
    # Keys and values of 3 layers, 2 heads of 8 each; the LM head is the embeddings, and packed.
    prefixes = MAX_PREFIX_TOKENS * 3 * 2 * 2 * 8 * 4
    head = VOCAB_SIZE * HIDDEN_SIZE * 4 if can_pack(torch.zeros(1)) else 0
    assert capacity.budget_bytes == (available - prefixes - head) // 2


def test_a_model_that_needs_token_ids_only_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "it takes no input embeddings (ValueError: no ids)"
    for refusal, able in ((None, {LATENTS_IN, LATENT_STEPS, SCORING}), (reason, {SCORING})):

        def probe_with(model: Any, refusal: str | None = refusal) -> Probe:
            return replace(probe(model), embedding_refusal=refusal)

        monkeypatch.setattr(local_backend, "probe", probe_with)
        settings = Settings(
            model=str(save_model(tmp_path / "tiny")), dtype="fp32", device="cpu", max_slots=1
        )
        backend = LocalBackend(settings, lambda _stats: None, lambda _error: None)
        backend.load()
        try:
            info = backend.info
            assert info.capabilities == able
            assert info.embedding_size == HIDDEN_SIZE
            assert info.refusals == dict.fromkeys({LATENTS_IN, LATENT_STEPS} - able, reason)
            prompt = Prompt.joined([[5], np.zeros((2, HIDDEN_SIZE), np.float32)])
            if refusal is None:
                assert backend.submit(make_spec(prompt, 1)).future.result(60).prompt_tokens == 3
            else:
                with pytest.raises(InvalidParamsError, match="it takes no input"):
                    backend.submit(make_spec(prompt, 1))
            scored = backend.submit(make_spec([5, 6], 1, given=[7, 8])).future.result(60)
            assert scored.token_logprobs is not None
        finally:
            backend.drain(60)
    assert f"the model takes no latents: {reason}" in caplog.text
