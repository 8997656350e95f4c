"""A recorded decode step computes the same as the step itself, for every shape, in any order."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.decode_step import RecordedStep, make_traceable
from latentwire_service.engine.hf.kv_cache import CacheView
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.runner import PromptPart, StepEmbeddings, StepOutput
from support.engine.device import DEVICE, DTYPE, IS_EXACT, TOLERANCE, needs_cuda
from support.engine.latent_reference import random_latent
from support.tiny_models import build_model, llama_config, random_prompts

SLOTS = 5


class FakeRecorder:
    """Replays by running the work again, on whatever its input tensors hold by then."""

    def __init__(self) -> None:
        self.num_recordings = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_recordings += 1
        return run


def view_of(positions: list[int], kv_length: int) -> CacheView:
    columns = torch.tensor(positions)[:, None]
    return CacheView(torch.arange(len(positions)), True, columns, columns, kv_length)


def step(
    token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings | None = None, /
) -> StepOutput:
    total = token_ids * 100 + view.write_positions * 10 + view.query_positions + view.kv_length
    if embeddings is not None:
        total = torch.where(embeddings.is_used[:, None], embeddings.rows, total.float())
    return StepOutput(total.float(), -total.float())


def test_a_replay_reads_the_inputs_of_its_own_call() -> None:
    record = FakeRecorder()
    recorded = RecordedStep(step, record)
    calls = [([1, 2], [3, 4], 64), ([5], [6], 64), ([7, 8], [9, 10], 64), ([1, 1], [2, 2], 128)]
    for token_ids, positions, kv_length in calls * 2:
        tokens, view = torch.tensor(token_ids)[:, None], view_of(positions, kv_length)
        actual, expected = recorded(tokens, view), step(tokens, view)
        assert torch.equal(actual.logits, expected.logits)
        assert torch.equal(actual.hidden, expected.hidden)
    # One for each number of rows and length.
    assert record.num_recordings == 3


def test_a_recording_does_not_keep_the_callers_tensors() -> None:
    recorded = RecordedStep(step, FakeRecorder())
    tokens, view = torch.tensor([[1], [2]]), view_of([3, 4], 64)
    recorded(tokens, view)
    tokens.fill_(9)
    view.write_positions.fill_(9)
    other = view_of([5, 6], 64)
    again = recorded(torch.tensor([[1], [2]]), other)
    assert torch.equal(again.logits, step(torch.tensor([[1], [2]]), other).logits)
    # The arguments of the second call are not written to either.
    assert tokens.tolist() == [[9], [9]]


def test_steps_with_embeddings_have_recordings_of_their_own() -> None:
    record = FakeRecorder()
    recorded = RecordedStep(step, record)
    tokens, view = torch.tensor([[1], [2]]), view_of([3, 4], 64)
    for value, is_used in ((5.0, [True, False]), (6.0, [False, True]), (7.0, [False, False])) * 2:
        embeddings = StepEmbeddings(torch.full((2, 1), value), torch.tensor(is_used))
        for given in (embeddings, None):
            actual = recorded(tokens, view, given)
            assert torch.equal(actual.hidden, step(tokens, view, given).hidden)
        embeddings.rows.fill_(9.0)
    assert record.num_recordings == 2


def test_a_recorded_model_decodes_as_the_model_does() -> None:
    model = build_model(llama_config())
    probed = probe(model)
    plain = build_runner(copy.deepcopy(model), probed, SLOTS, 200)
    model = copy.deepcopy(model)
    build_runner(model, probed, SLOTS, 200)
    runner = HfModelRunner(
        model,
        probed.shapes,
        probed.hidden_size,
        SLOTS,
        200,
        False,
        has_few_shapes=True,
        takes_embeddings=True,
    )
    record = FakeRecorder()
    runner._decode_step = RecordedStep(runner._decode_step, record)
    runner.warm_up()
    # 1, 2, 4 and 5 rows; 64, 128 and 200 positions; with embeddings and without.
    assert record.num_recordings == 4 * 3 * 2
    for prepared in (plain, runner):
        for slot, prompt in enumerate(random_prompts([40, 3, 70])):
            prepared.prefill([PromptPart(slot, Prompt(tuple(prompt)), 0)])
    latent = StepEmbeddings(
        torch.tensor(random_latent(3), device=DEVICE),
        torch.tensor([True, False, True], device=DEVICE),
    )
    for tokens, positions, embeddings in (
        ([7, 8, 9], [40, 3, 70], None),
        ([7], [41], None),
        ([7, 8, 9], [42, 4, 71], latent),
        ([7, 8, 9], [43, 5, 72], None),
        # Three rows are padded to the four of a recording.
        ([7, 8, 9], [44, 6, 73], latent),
    ):
        actual, expected = (
            prepared.decode(np.array(tokens), np.array(positions), embeddings)
            for prepared in (runner, plain)
        )
        torch.testing.assert_close(actual.hidden, expected.hidden, atol=TOLERANCE.value, rtol=0)
        if IS_EXACT:
            torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)
    # All shapes were recorded in the warm-up.
    assert record.num_recordings == 4 * 3 * 2


def test_a_closed_runner_frees_its_kv_cache() -> None:
    model = build_model(llama_config())
    runner = build_runner(model, probe(model), SLOTS, 200)
    cache = weakref.ref(runner._cache)
    runner.close()
    del runner
    gc.collect()
    assert cache() is None


def test_a_traceable_model_computes_the_same() -> None:
    model = build_model(llama_config())
    token_ids = torch.tensor([[3, 4, 5]], device=DEVICE)
    expected = model(input_ids=token_ids, use_cache=False).logits
    make_traceable(model)
    assert torch.equal(model(input_ids=token_ids, use_cache=False).logits, expected)


@pytest.mark.gpu
@needs_cuda
def test_cuda_graphs_decode_as_the_model_does() -> None:
    """All shapes are recorded on one thread and replayed on another, as in the service."""
    cuda = torch.device("cuda")
    model = build_model(llama_config(), device=cuda, dtype=DTYPE)
    probed = probe(model)
    plain = build_runner(copy.deepcopy(model), probed, SLOTS, 200)
    runner = build_runner(model, probed, SLOTS, 200, compile_decode=True)
    for prepared in (plain, runner):
        for slot, prompt in enumerate(random_prompts([40, 3, 70])):
            prepared.prefill([PromptPart(slot, Prompt(tuple(prompt)), 0)])
    with ThreadPoolExecutor(1) as thread:
        for step_index in range(40):
            tokens = np.array([7, 8, 9]) + step_index
            positions = np.array([40, 3, 70]) + step_index
            latent = StepEmbeddings(
                torch.randn(3, runner.embedding_size, device=cuda),
                torch.tensor([True, False, True], device=cuda),
            )
            embeddings = latent if step_index % 3 == 0 else None
            actual = thread.submit(runner.decode, tokens, positions, embeddings).result()
            expected = plain.decode(tokens, positions, embeddings)
            torch.testing.assert_close(actual.hidden, expected.hidden, atol=TOLERANCE.value, rtol=0)
            if IS_EXACT:
                torch.testing.assert_close(actual.logits, expected.logits, atol=1e-3, rtol=1e-3)
