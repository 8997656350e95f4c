"""Seeded requests over vLLM, with prompts that take several steps."""

from __future__ import annotations

import pytest

from support.engine.vllm_models import NEEDS_VLLM, PREFILL_CHUNK
from support.live_server import LiveServer
from support.requests import plan_of

pytestmark = [pytest.mark.vllm, NEEDS_VLLM, pytest.mark.timeout(2400)]


def test_a_seed_gives_the_same_plan_whether_the_prompt_takes_several_steps_or_is_cached(
    served: LiveServer,
) -> None:
    body = {
        "task": "a prompt that is much longer than one chunk of positions, " * 2,
        "prompt_template": "{task}",
        "chat_template": "none",
        "max_new_tokens": 12,
        "temperature": 1.0,
        "seed": 7,
    }
    first, second = (plan_of(served.http.post("/plan_latent", json=body)) for _ in range(2))
    assert first.usage.prompt_tokens > 2 * PREFILL_CHUNK
    assert first.token_ids == second.token_ids
    other = plan_of(served.http.post("/plan_latent", json=body | {"seed": 8}))
    assert other.token_ids != first.token_ids
