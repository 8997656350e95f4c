"""The engine over a scripted runner: what it delivers, and why generation ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.backend import Completion, FinishReason, Step, StepStats
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.request import Request
from support.engine.fake_runner import HIDDEN_SIZE, FakeModelRunner, hidden_row
from support.engine.requests import NumberTokenizer, make_spec

EOS = 0


def start_engine(clock: Callable[[], float] = lambda: 0.0) -> Engine:
    return Engine(FakeModelRunner(), NumberTokenizer(), frozenset({EOS}), 16, clock)


def submit(engine: Engine, prompt: list[int], max_new_tokens: int, **options: Any) -> Request:
    request = engine.new_request(make_spec(prompt, max_new_tokens, **options))
    engine.add(request)
    return request


def run(engine: Engine) -> list[StepStats]:
    steps = []
    while (stats := engine.step()) is not None:
        steps.append(stats)
    return steps


def completion_of(prompt: list[int], max_new_tokens: int, **options: Any) -> Completion:
    engine = start_engine()
    request = submit(engine, prompt, max_new_tokens, **options)
    run(engine)
    return request.future.result(0)


@pytest.mark.parametrize(
    ("max_new_tokens", "token_ids", "reason"),
    [
        (2, [48, 49], FinishReason.LENGTH),
        (3, [48, 49, EOS], FinishReason.STOP),
        (4, [48, 49, EOS], FinishReason.STOP),
    ],
)
def test_an_end_token_wins_over_the_length(
    max_new_tokens: int, token_ids: list[int], reason: FinishReason
) -> None:
    completion = completion_of([47], max_new_tokens)
    assert (completion.token_ids, completion.finish_reason) == (token_ids, reason)


@pytest.mark.parametrize(
    ("max_new_tokens", "token_ids", "reason", "text"),
    [
        (2, [6, 7], FinishReason.LENGTH, "6 7 "),
        (3, [6, 7, 8], FinishReason.STOP, "6 "),
        (4, [6, 7, 8], FinishReason.STOP, "6 "),
    ],
)
def test_a_stop_string_wins_over_the_length(
    max_new_tokens: int, token_ids: list[int], reason: FinishReason, text: str
) -> None:
    completion = completion_of([5], max_new_tokens, stop=("7 8",))
    assert (completion.token_ids, completion.finish_reason) == (token_ids, reason)
    assert completion.text == text


@pytest.mark.parametrize(("k", "num_rows"), [(None, 3), (0, 0), (2, 2), (9, 3)])
def test_k_keeps_the_first_rows_and_the_text_is_generated_to_its_end(
    k: int | None, num_rows: int
) -> None:
    completion = completion_of([3, 9], 3, k=k)
    assert completion.token_ids == [10, 11, 12]
    assert completion.hidden_state.shape == (num_rows, HIDDEN_SIZE)
    expected = [hidden_row(9, 1), hidden_row(10, 2), hidden_row(11, 3)][:num_rows]
    np.testing.assert_array_equal(completion.hidden_state.tolist(), expected)


def test_a_stream_gets_every_token_with_its_row_before_the_completion() -> None:
    engine = start_engine()
    steps: list[Step] = []

    def note(step: Step) -> None:
        assert not request.future.done()
        steps.append(step)

    request = engine.new_request(make_spec([5], 3, k=2), note)
    engine.add(request)
    run(engine)
    assert [(step.index, step.token_id, step.text) for step in steps] == [
        (0, 6, "6 "),
        (1, 7, "7 "),
        (2, 8, "8 "),
    ]
    assert [step.row is None for step in steps] == [False, False, True]
    assert request.future.done()


def test_the_time_to_first_token_counts_from_the_submission() -> None:
    now = 0.0
    engine = start_engine(lambda: now)
    request = engine.new_request(make_spec([5], 2))
    now = 3.0
    engine.add(request)
    first = engine.step()
    now = 5.0
    second = engine.step()
    assert first is not None
    assert second is not None
    assert (list(first.first_token_s), list(second.first_token_s)) == ([3.0], [])
    assert (first.num_prompt_tokens, first.num_new_tokens) == (1, 1)
    assert (second.num_prompt_tokens, second.num_new_tokens) == (0, 1)
    completion = request.future.result(0)
    assert (completion.queue_s, completion.prefill_s, completion.decode_s) == (3.0, 0.0, 2.0)
