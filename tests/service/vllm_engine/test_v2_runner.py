"""Rows from the V2 model runner, which runs on GPUs with Triton only.

Nothing here loads a model. The classes are those of the installed vLLM, so that a version with
other names or another order of calls fails; `execute_model`, the model and the sampler are
stand-ins.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentwire_service.vllm_engine.row_ledger import ROWS_ARG, WantedRow
from support.engine.vllm_models import NEEDS_VLLM

pytestmark = [pytest.mark.vllm, NEEDS_VLLM]

WIDTH = 4
PROMPTS = {"a": 3, "b": 5, "c": 2, "stranger": 2}
MAX_ROWS = {"a": 2, "b": 9, "c": 0}
NUMBERS = {"a": 7, "b": 8, "c": 9}


class Received:
    """In place of the sender."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], list[float]] = {}

    def send(self, rows: torch.Tensor, wanted: Sequence[WantedRow]) -> None:
        assert len(rows) == len(wanted)
        for values, place in zip(rows.tolist(), wanted, strict=True):
            assert (place.request, place.row) not in self.rows
            self.rows[place.request, place.row] = values


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def runner(received: Received) -> Any:
    """A runner of the real class whose model only counts its inputs."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from latentwire_service.vllm_engine.row_worker import RowHooks

    made: Any = object.__new__(GPUModelRunner)
    made.batch_sharder = None
    made.rejection_sampler = None
    made.model = SimpleNamespace(compute_logits=lambda rows: rows)
    made.sampler = lambda logits, _batch: SimpleNamespace(
        sampled_token_ids=logits, num_sampled=len(logits), num_rejected=0
    )
    made.execute_model = lambda _scheduler_output: None
    RowHooks(received).install(made)  # type: ignore[arg-type]  # has its one method
    return made


def new_request(name: str, computed: int) -> Any:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    extra = {ROWS_ARG: [NUMBERS[name], MAX_ROWS[name]]} if name in NUMBERS else None
    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1] * PROMPTS[name],
        mm_features=[],
        sampling_params=SamplingParams(extra_args=extra),
        pooling_params=None,
        block_ids=([0],),
        num_computed_tokens=computed,
        lora_request=None,
    )


def scheduled(
    new: dict[str, tuple[int, int]], cached: dict[str, tuple[int, int]], finished: set[str]
) -> Any:
    """A step: for each request, the positions that are computed before it and in it."""
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = [new_request(name, computed) for name, (computed, _) in new.items()]
    known = CachedRequestData.make_empty()
    known.req_ids = list(cached)
    known.num_computed_tokens = [computed for computed, _ in cached.values()]
    output.scheduled_cached_reqs = known
    output.num_scheduled_tokens = {name: n for name, (_, n) in (new | cached).items()}
    output.finished_req_ids = finished
    return output


def step(
    runner: Any,
    order: str,
    new: dict[str, tuple[int, int]],
    cached: dict[str, tuple[int, int]],
    finished: frozenset[str] = frozenset(),
) -> dict[str, list[float]]:
    """Run a step, and return the row of each request at its last position."""
    from vllm.v1.worker.gpu.input_batch import InputBatch

    output = scheduled(new, cached, set(finished))
    runner.execute_model(output)
    batch: Any = object.__new__(InputBatch)
    batch.req_ids = order.split()
    batch.num_reqs = len(batch.req_ids)
    batch.num_draft_tokens = 0
    counts = torch.tensor([output.num_scheduled_tokens[name] for name in batch.req_ids])
    batch.logits_indices = counts.cumsum(0) - 1
    # Positions of a CUDA graph may follow that no request has.
    hidden = torch.randn(int(counts.sum()) + 3, WIDTH)
    sampled, num_sampled, _ = runner.sample(hidden, batch, None)
    assert torch.equal(sampled.sampled_token_ids, hidden[batch.logits_indices])
    assert num_sampled == batch.num_reqs
    return dict(zip(batch.req_ids, hidden[batch.logits_indices].tolist(), strict=True))


def test_rows_are_those_of_the_sampled_positions(runner: Any, received: Received) -> None:
    # The prompt of b comes in two chunks, the second with a token of a.
    first = step(runner, "a b", {"a": (0, 3), "b": (0, 4)}, {})
    second = step(runner, "a b", {}, {"a": (3, 1), "b": (4, 1)})
    third = step(
        runner, "b a c stranger", {"c": (0, 2), "stranger": (0, 2)}, {"a": (4, 1), "b": (5, 1)}
    )
    assert received.rows == {
        (7, 0): first["a"],
        (7, 1): second["a"],
        (8, 0): second["b"],
        (8, 1): third["b"],
    }


def test_a_preempted_request_comes_as_a_new_one(runner: Any, received: Received) -> None:
    rows = [step(runner, "b", {"b": (0, 5)}, {})["b"], step(runner, "b", {}, {"b": (5, 1)})["b"]]
    # Its prompt and two tokens are computed again, in chunks.
    step(runner, "b", {"b": (0, 4)}, {})
    rows.append(step(runner, "b", {}, {"b": (4, 3)})["b"])
    rows.append(step(runner, "b", {}, {"b": (7, 1)})["b"])
    assert received.rows == {(8, index): row for index, row in enumerate(rows)}


def test_a_batch_with_drafts_is_an_error(runner: Any) -> None:
    runner.execute_model(scheduled({"a": (0, 3)}, {}, set()))
    batch = SimpleNamespace(req_ids=["a"], logits_indices=torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="2 rows are sampled for 1 requests"):
        runner.sample(torch.zeros(3, WIDTH), batch, None)


def test_the_installed_runner_has_what_the_hooks_need() -> None:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

    names = list(inspect.signature(GPUModelRunner.sample).parameters)
    assert names[:3] == ["self", "hidden_states", "input_batch"]
    names = list(inspect.signature(GPUModelRunner.execute_model).parameters)
    assert names[:2] == ["self", "scheduler_output"]
    assert {"req_ids", "logits_indices"} <= {field.name for field in fields(InputBatch)}
    assert "self.sample(\n            hidden_states, input_batch" in inspect.getsource(
        GPUModelRunner.sample_tokens
    )
    # By this, the two are told from each other.
    assert not hasattr(RunnerV1, "sample")


def test_a_runner_of_another_kind_is_refused(received: Received) -> None:
    from latentwire_service.vllm_engine.row_worker import RowHooks

    class OtherRunner:
        input_batch = None

        def execute_model(self) -> None:
            raise AssertionError

    with pytest.raises(RuntimeError, match="OtherRunner is not known"):
        RowHooks(received).install(OtherRunner())  # type: ignore[arg-type]  # as above
