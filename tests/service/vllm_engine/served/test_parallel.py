"""Two processes share a tiny Llama: the rows are whole, and come once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire.tensors import decode_hidden_state
from support.engine import vllm_models
from support.engine.vllm_server import start_vllm
from support.live_server import LiveServer
from support.requests import latent_of, plan_of

pytestmark = [pytest.mark.vllm, vllm_models.NEEDS_VLLM, pytest.mark.timeout(2400)]


_, *OTHER_ARGS = vllm_models.ENGINE_ARGS
SHARED: dict[str, dict[str, Any]] = {
    "layers": {"tensor_parallel_size": 2, "engine_arg": vllm_models.ENGINE_ARGS},
    # On a CPU, vLLM prepares the second process for this with its compilation mode alone.
    "groups of layers": {
        "pipeline_parallel_size": 2,
        "engine_arg": ('compilation_config={"mode": 2, "backend": "eager"}', *OTHER_ARGS),
    },
}


@pytest.fixture(scope="module", params=SHARED)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder: Path = vllm_models.save("llama", tmp_path_factory.mktemp("models") / "tiny-llama")
    with pytest.MonkeyPatch.context() as patched:
        # By itself, vLLM wants a NUMA node for each process.
        patched.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|0")
        live = start_vllm(
            str(folder),
            max_slots=vllm_models.MAX_SLOTS,
            max_model_len=vllm_models.MAX_MODEL_LEN,
            **SHARED[request.param],
        )
    yield live
    live.close()


def test_plans_and_rows_are_those_of_generate(served: LiveServer) -> None:
    reference = vllm_models.Reference("llama")
    tasks = [f"task {index}: " + "words " * index for index in range(8)]

    def run(task: str) -> httpx.Response:
        return served.http.post("/plan_latent", json=vllm_models.body_of(task, 40))

    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = list(pool.map(run, tasks))
    for task, answer in zip(tasks, answers, strict=True):
        plan, expected = plan_of(answer), reference.generate(task, 40)
        assert plan.token_ids == expected.token_ids
        rows = decode_hidden_state(latent_of(plan))
        np.testing.assert_allclose(rows, expected.hidden_state, atol=2e-3)
