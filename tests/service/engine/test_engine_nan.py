"""What a real model leaves in its slot when it goes wrong must reach nobody else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.engine.errors import LatentInvalidError
from support.engine.harness import EngineHarness
from support.tiny_models import build_model, generate, llama_config

POISON = 77


class Poisoned(torch.nn.Module):
    """An embedding that is NaN for one token."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(token_ids, self.weight)
        return rows.masked_fill((token_ids == POISON)[..., None], torch.nan)


def test_nan_in_a_slot_reaches_neither_neighbours_nor_the_next_request() -> None:
    clean = build_model(llama_config(eos_token_id=None))
    model = build_model(llama_config(eos_token_id=None))
    model.set_input_embeddings(Poisoned(model.get_input_embeddings()))
    harness = EngineHarness(model, max_slots=2, eos=())
    poisoned_prompt = [9, 8, POISON, *range(100, 140)]
    # The neighbour ends first, so that the slot of the failed one is not written over by a move.
    neighbour = harness.submit([5, 6, 7], 6)
    poisoned = harness.submit(poisoned_prompt, 20)
    harness.run()
    with pytest.raises(LatentInvalidError, match="not finite"):
        poisoned.future.result(timeout=0)
    followers = [harness.submit([30, 31], 9), harness.submit([40, 41, 42, 43], 9)]
    harness.run()
    for request in (neighbour, *followers):
        prompt = request.spec.prompt.token_ids
        expected = generate(clean, prompt, request.spec.sampling.max_new_tokens)
        completion = request.future.result(timeout=0)
        assert completion.token_ids == expected.token_ids
        np.testing.assert_allclose(
            completion.hidden_state, expected.hidden_state, atol=1e-4, rtol=0
        )
