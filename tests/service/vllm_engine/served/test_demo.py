"""The demo model in vLLM: real weights, and more requests than slots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import decode_hidden_state
from support.engine.vllm_models import NEEDS_VLLM, body_of
from support.engine.vllm_server import start_vllm
from support.live_server import LiveServer
from support.requests import latent_of, plan_of
from support.tiny_models import generate

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.demo_model,
    NEEDS_VLLM,
    pytest.mark.timeout(2400),
]

NUM_REQUESTS, MAX_SLOTS, NUM_TOKENS = 16, 4, 16
# Rows of this model have a length of about 70.
TOLERANCE = 2e-3
THINGS = "mug plate lamp chair book knife apple towel bottle phone vase pillow bowl fork sofa pan"


@pytest.fixture(scope="module")
def served() -> Iterator[LiveServer]:
    live = start_vllm(
        "demo",
        max_slots=MAX_SLOTS,
        max_model_len=256,
        engine_arg=("enforce_eager=true", f"kv_cache_memory_bytes={2**27}"),
    )
    yield live
    live.close()


@pytest.fixture(scope="module")
def loaded() -> Any:
    """The model and its tokenizer, without vLLM."""
    import torch

    from latentwire_service.engine.hf.loader import load_model, read_files

    cache = Path.home() / ".cache/latentwire"
    files = read_files("demo", cache_dir=cache)
    model = load_model(
        files.location,
        device=torch.device("cpu"),
        dtype=torch.float32,
        cache_dir=cache,
        revision=files.revision,
    )
    return model.model, files.tokenizer


def test_sixteen_staggered_requests_in_four_slots_are_those_of_generate(
    served: LiveServer, loaded: Any
) -> None:
    model, tokenizer = loaded
    tasks = [f"To move the {thing} to the kitchen, first" for thing in THINGS.split()]
    assert len(tasks) == NUM_REQUESTS

    def run(index: int) -> PlanLatentResponse:
        time.sleep(0.1 * index)
        return plan_of(served.http.post("/plan_latent", json=body_of(tasks[index], NUM_TOKENS)))

    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        plans = list(pool.map(run, range(NUM_REQUESTS)))
    for task, plan in zip(tasks, plans, strict=True):
        prompt = tokenizer.encode(task, add_special_tokens=False)
        expected = generate(model, prompt, NUM_TOKENS)
        assert plan.token_ids == expected.token_ids
        rows = decode_hidden_state(latent_of(plan))
        np.testing.assert_allclose(rows, expected.hidden_state, atol=TOLERANCE)
