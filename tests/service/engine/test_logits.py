"""Changes to one request's logits stay with that request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.errors import ProcessorError
from latentwire_service.engine.hf.penalties import CountPenalty, LogitBias
from latentwire_service.engine.logits import (
    LogitsChanges,
    RowLogits,
    RowProcessor,
    TokenPenalties,
)
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from support.engine.fake_runner import FakeModelRunner
from support.engine.requests import NumberTokenizer, make_request, make_spec


def favour(in_place: bool, fails_at: int | None) -> RowProcessor:
    """Prefers one token, in place or not; raises at a step."""

    def process(token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        if len(token_ids) == fails_at:
            raise RuntimeError("out of range")
        result = logits if in_place else logits.clone()
        result[0, 30] += 100
        return result

    return process


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("fails_at", [None, 0, 2])
def test_a_change_and_its_failure_stay_with_their_request(
    in_place: bool, fails_at: int | None
) -> None:
    def make(spec: GenerationSpec) -> RowLogits | None:
        if spec.prompt.token_ids[0] != 7:
            return None
        return RowLogits(spec.sampling, process=favour(in_place, fails_at))

    runner = FakeModelRunner(max_slots=3)
    engine = Engine(runner, NumberTokenizer(), frozenset(), 64, lambda: 0.0, make)
    requests = [engine.new_request(make_spec([first, 5])) for first in (4, 7, 6)]
    for request in requests:
        engine.add(request)
    while engine.step() is not None:
        pass
    changed = requests.pop(1)
    if fails_at is None:
        assert changed.future.result(0).token_ids == [30] * 4
    else:
        assert isinstance(changed.future.exception(0), ProcessorError)
    assert [request.future.result(0).token_ids for request in requests] == [[6, 7, 8, 9]] * 2


WIDTH = 40


def one_by_one(
    penalties: TokenPenalties, prompt: list[int], token_ids: list[int], logits: torch.Tensor
) -> torch.Tensor:
    """The oracle: transformers' processor and ours for single rows, in the documented order."""
    input_ids = torch.tensor([prompt + token_ids], dtype=torch.long)
    logits = logits.clone()
    if penalties.bias:
        logits = LogitBias(penalties.bias)(input_ids, logits)
    if penalties.repetition != 1 and input_ids.numel():
        repetition = RepetitionPenaltyLogitsProcessor(penalties.repetition)
        logits = repetition(input_ids, torch.FloatTensor(logits))
    return CountPenalty(penalties.presence, penalties.frequency, len(prompt))(input_ids, logits)


def random_penalties(rng: random.Random) -> TokenPenalties | None:
    if rng.random() < 0.2:
        return None
    return TokenPenalties(
        bias=tuple((t, rng.uniform(-9, 9)) for t in rng.sample(range(WIDTH), rng.randrange(4))),
        repetition=rng.choice([1.0, 1.3, 0.6, 10.0]),
        presence=rng.choice([0.0, 1.5, -2.0]),
        frequency=rng.choice([0.0, 0.7, -0.3]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_penalties_of_all_rows_at_once_equal_those_of_each_row(seed: int) -> None:
    """Requests come and go at random, so that rows of the table are reused and the table grows."""
    rng = random.Random(seed)
    generator = torch.manual_seed(seed)
    chosen: dict[Request, TokenPenalties | None] = {}
    by_spec: dict[str, TokenPenalties | None] = {}

    def make(spec: GenerationSpec) -> RowLogits | None:
        penalties = by_spec[spec.plan_id]
        return None if penalties is None else RowLogits(spec.sampling, penalties)

    changes = LogitsChanges(make)
    for _ in range(60):
        for request in list(chosen):
            if rng.random() < 0.1:
                del chosen[request]
                changes.forget(request)
        for _ in range(rng.randrange(3)):
            prompt = [rng.randrange(WIDTH) for _ in range(rng.choice([1, 2, 9, 300]))]
            request = make_request(prompt, 90)
            if rng.random() < 0.2:
                # As a prompt of nothing but embeddings, which has no token to be counted.
                rows = np.zeros((3, 4), dtype=np.float32)
                request.spec = replace(request.spec, prompt=Prompt.joined([rows]))
            chosen[request] = by_spec[request.spec.plan_id] = random_penalties(rng)
        requests = rng.sample(list(chosen), len(chosen))
        logits = torch.randn(len(requests), WIDTH, generator=generator) * 5
        changed = changes.apply(requests, logits)
        assert not changed.errors
        for row, request in enumerate(requests):
            expected = logits[row : row + 1]
            penalties = chosen[request]
            assert (row in changed.rows) == (penalties is not None)
            if penalties is not None:
                prompt = list(request.spec.prompt.text_only().token_ids)
                expected = one_by_one(penalties, prompt, request.token_ids, expected)
            assert torch.equal(changed.logits[row : row + 1], expected)
            request.token_ids.append(rng.randrange(WIDTH))


@pytest.mark.parametrize(
    ("prompt", "bias"), [([1, WIDTH], ()), ([1, 2], ((WIDTH, 3.0),)), ([1, 2], ((-1, 3.0),))]
)
def test_a_token_id_out_of_range_fails_its_own_request(
    prompt: list[int], bias: tuple[tuple[int, float], ...]
) -> None:
    changes = LogitsChanges(
        lambda spec: RowLogits(spec.sampling, TokenPenalties(spec.sampling.logit_bias, 1.3))
    )
    requests = [make_request([4]), make_request(prompt, logit_bias=bias), make_request([5])]
    changed = changes.apply(requests, torch.ones(3, WIDTH))
    assert list(changed.errors) == [1]
    expected = torch.ones(3, WIDTH)
    expected[0, 4] = expected[2, 5] = 1 / 1.3
    assert torch.equal(changed.logits, expected)
