"""A tiny Qwen2 in vLLM: biases in attention, and an LM head that is tied to the embedding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from latentwire.tensors import decode_hidden_state
from support.engine.vllm_models import NEEDS_VLLM, Reference, body_of
from support.live_server import LiveServer
from support.requests import plan_of

pytestmark = [pytest.mark.vllm, NEEDS_VLLM, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def kind() -> str:
    return "qwen2"


def test_plans_and_rows_are_those_of_generate(served: LiveServer, kind: str) -> None:
    reference = Reference(kind)
    tasks = [f"task {index}: " + "words " * index for index in range(8)]

    def run(task: str) -> httpx.Response:
        return served.http.post("/plan_latent", json=body_of(task, 40))

    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = list(pool.map(run, tasks))
    for task, answer in zip(tasks, answers, strict=True):
        plan, expected = plan_of(answer), reference.generate(task, 40)
        assert plan.token_ids == expected.token_ids
        assert plan.hidden_state is not None
        rows = decode_hidden_state(plan.hidden_state)
        np.testing.assert_allclose(rows, expected.hidden_state, atol=2e-3)
