"""Submit, cancel, drain and failure, over a runner that the test holds still at will."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.backend import Completion, Occupancy
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.engine_thread import EngineThread, SubmittedRequest
from latentwire_service.engine.errors import (
    EngineUnavailableError,
    LatentInvalidError,
    QueueFullError,
    RequestCancelledError,
)
from support.engine.fake_runner import FakeModelRunner, hidden_row
from support.engine.requests import NumberTokenizer, make_spec
from support.gate import TIMEOUT_S, Gate


class Failures:
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.happened = threading.Event()

    def __call__(self, error: Exception) -> None:
        self.errors.append(error)
        self.happened.set()


class Running:
    """A started engine thread and what the test watches."""

    def __init__(self, max_queue: int, runner: FakeModelRunner) -> None:
        self.runner = runner
        self.failures = Failures()
        engine = Engine(
            runner, NumberTokenizer(), frozenset({0}), prefill_chunk=16, clock=lambda: 0.0
        )
        self.thread = EngineThread(
            engine, runner.max_slots, max_queue, lambda _stats: None, self.failures
        )
        self.thread.start()

    def submit(
        self, prompt: Sequence[int], max_new_tokens: int = 4, **options: Any
    ) -> SubmittedRequest:
        return self.thread.submit(make_spec(prompt, max_new_tokens, **options))


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start_one(max_queue: int = 8, **runner: Any) -> Running:
        started.append(Running(max_queue, FakeModelRunner(**runner)))
        return started[-1]

    yield start_one
    for running in started:
        assert running.thread.stop(TIMEOUT_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    held = Gate()
    yield held
    held.may_pass.set()


def test_a_request_gets_its_tokens_and_the_row_that_predicts_each(
    start: Callable[..., Running],
) -> None:
    running = start()
    request = running.submit([3, 9], max_new_tokens=3)
    completion = request.future.result(TIMEOUT_S)
    assert completion.token_ids == [10, 11, 12]
    assert completion.text == "10 11 12 "
    expected = [hidden_row(9, 1), hidden_row(10, 2), hidden_row(11, 3)]
    np.testing.assert_array_equal(completion.hidden_state, np.array(expected, np.float32))


def test_a_full_queue_refuses_and_counts_no_request_that_has_a_slot(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_queue=2, max_slots=1, before_step=gate)
    requests = [running.submit([1])]
    assert gate.is_reached.wait(TIMEOUT_S)
    requests += [running.submit([n]) for n in (2, 3)]
    assert running.thread.occupancy == Occupancy(num_running=1, num_waiting=2)
    with pytest.raises(QueueFullError, match="2 requests are already waiting") as caught:
        running.submit([4])
    assert caught.value.retry_after_s > 0
    gate.may_pass.set()
    for request in requests:
        assert len(request.future.result(TIMEOUT_S).token_ids) == 4


def test_a_queue_that_was_full_takes_requests_again(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_queue=1, max_slots=1, before_step=gate)
    running.submit([1])
    assert gate.is_reached.wait(TIMEOUT_S)
    second = running.submit([2])
    with pytest.raises(QueueFullError):
        running.submit([3])
    gate.may_pass.set()
    second.future.result(TIMEOUT_S)
    third = running.submit([3])
    assert third.future.result(TIMEOUT_S).token_ids == [4, 5, 6, 7]


def test_a_request_that_has_its_answer_takes_no_place(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_queue=0, max_slots=1, before_step=gate)
    seen: list[Occupancy] = []
    following: list[SubmittedRequest] = []

    def on_answer(_future: Future[Completion]) -> None:
        # On the engine's thread, whose step has not returned yet.
        seen.append(running.thread.occupancy)
        following.append(running.submit([2]))
        seen.append(running.thread.occupancy)
        is_followed.set()

    is_followed = threading.Event()
    first = running.submit([1])
    assert gate.is_reached.wait(TIMEOUT_S)
    first.future.add_done_callback(on_answer)
    gate.may_pass.set()
    assert is_followed.wait(TIMEOUT_S)
    assert seen == [
        Occupancy(num_running=0, num_waiting=0),
        Occupancy(num_running=1, num_waiting=0),
    ]
    assert following[0].future.result(TIMEOUT_S).token_ids == [3, 4, 5, 6]


def test_a_cancelled_request_makes_room_and_the_others_continue(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_slots=2, before_step=gate)
    leaving, staying, waiting = (running.submit([n], 20) for n in (1, 2, 3))
    assert gate.is_reached.wait(TIMEOUT_S)
    leaving.cancel()
    gate.may_pass.set()
    with pytest.raises(RequestCancelledError):
        leaving.future.result(TIMEOUT_S)
    assert staying.future.result(TIMEOUT_S).token_ids == list(range(3, 23))
    assert waiting.future.result(TIMEOUT_S).token_ids == list(range(4, 24))


def test_a_request_cancelled_before_the_loop_saw_it_never_runs(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_slots=2, before_step=gate)
    first = running.submit([1])
    assert gate.is_reached.wait(TIMEOUT_S)
    second = running.submit([30])
    second.cancel()
    gate.may_pass.set()
    assert isinstance(second.future.exception(TIMEOUT_S), RequestCancelledError)
    first.future.result(TIMEOUT_S)
    assert all(30 not in history for history in running.runner.histories)


def test_cancelling_a_finished_request_changes_nothing(start: Callable[..., Running]) -> None:
    running = start()
    request = running.submit([1])
    completion = request.future.result(TIMEOUT_S)
    request.cancel()
    after = running.submit([5])
    assert after.future.result(TIMEOUT_S).token_ids == [6, 7, 8, 9]
    assert request.future.result(0) is completion


def test_a_future_cancelled_by_its_owner_does_not_break_the_loop(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(before_step=gate)
    gone, other = running.submit([1]), running.submit([2])
    assert gate.is_reached.wait(TIMEOUT_S)
    assert gone.future.cancel()
    gone.cancel()
    gate.may_pass.set()
    assert other.future.result(TIMEOUT_S).token_ids == [3, 4, 5, 6]
    assert not running.failures.errors


def test_stop_finishes_accepted_requests_and_refuses_new_ones(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_slots=1, before_step=gate)
    requests = [running.submit([n]) for n in (1, 2, 3)]
    assert gate.is_reached.wait(TIMEOUT_S)
    assert not running.thread.stop(timeout_s=0)
    with pytest.raises(EngineUnavailableError):
        running.submit([4])
    gate.may_pass.set()
    assert running.thread.stop(TIMEOUT_S)
    for first, request in zip((2, 3, 4), requests, strict=True):
        assert request.future.result(0).token_ids == list(range(first, first + 4))
    assert not running.thread.is_alive()


def test_a_runner_that_raises_fails_every_waiter_and_reports_it(
    start: Callable[..., Running], gate: Gate
) -> None:
    broken = RuntimeError("device lost")

    def break_down() -> None:
        gate()
        raise broken

    running = start(max_slots=1, before_step=break_down)
    requests = [running.submit([n]) for n in (1, 2)]
    assert gate.is_reached.wait(TIMEOUT_S)
    # Submitted during the pass that fails: in the inbox only.
    requests.append(running.submit([3]))
    gate.may_pass.set()
    for request in requests:
        assert isinstance(request.future.exception(TIMEOUT_S), EngineUnavailableError)
    assert running.failures.happened.wait(TIMEOUT_S)
    assert running.failures.errors == [broken]
    assert running.thread.occupancy == Occupancy(num_running=0, num_waiting=0)
    with pytest.raises(EngineUnavailableError):
        running.submit([4])


def test_a_nan_row_fails_its_request_only_and_leaves_a_clean_slot(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_slots=2, poison=13, before_step=gate)
    # The last slot: no move writes over what is left in it.
    healthy = running.submit([20], 8)
    assert gate.is_reached.wait(TIMEOUT_S)
    poisoned = running.submit([10], 8)
    gate.may_pass.set()
    with pytest.raises(LatentInvalidError, match="not finite"):
        poisoned.future.result(TIMEOUT_S)
    assert healthy.future.result(TIMEOUT_S).token_ids == list(range(21, 29))
    assert running.runner.is_poisoned == [False, False]
    followers = [running.submit([30], 5), running.submit([40], 5)]
    for follower in followers:
        assert np.isfinite(follower.future.result(TIMEOUT_S).hidden_state).all()


def test_a_stop_string_and_an_end_token_free_the_slot(start: Callable[..., Running]) -> None:
    running = start(max_slots=1)
    by_string = running.submit([5], 40, stop=("8 9",))
    by_token = running.submit([47], 40)
    assert by_string.future.result(TIMEOUT_S).token_ids == [6, 7, 8, 9]
    assert by_string.future.result(0).text == "6 7 "
    assert by_token.future.result(TIMEOUT_S).token_ids == [48, 49, 0]


def test_a_full_queue_makes_room_for_a_caller_with_fewer(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_queue=3, max_slots=1, before_step=gate)
    greedy = [running.submit([1], caller="greedy")]
    assert gate.is_reached.wait(TIMEOUT_S)
    greedy += [running.submit([n], caller="greedy") for n in (2, 3, 4)]
    modest = running.submit([20], caller="modest")
    with pytest.raises(QueueFullError):
        running.submit([9])
    gate.may_pass.set()
    assert modest.future.result(TIMEOUT_S).token_ids == [21, 22, 23, 24]
    # The newest of the greedy one's gave way; the others are answered.
    assert isinstance(greedy[-1].future.exception(TIMEOUT_S), QueueFullError)
    for request in greedy[:-1]:
        assert len(request.future.result(TIMEOUT_S).token_ids) == 4


def test_a_caller_with_as_many_as_the_greediest_is_refused(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_queue=2, max_slots=1, before_step=gate)
    for n, caller in enumerate("xab"):
        running.submit([n + 1], caller=caller)
        assert gate.is_reached.wait(TIMEOUT_S)
    with pytest.raises(QueueFullError):
        running.submit([9], caller="c")
    gate.may_pass.set()


def test_abort_fails_accepted_requests_and_refuses_new_ones(
    start: Callable[..., Running], gate: Gate
) -> None:
    running = start(max_slots=1, before_step=gate)
    requests = [running.submit([n], 40) for n in (1, 2)]
    assert gate.is_reached.wait(TIMEOUT_S)
    running.thread.abort(EngineUnavailableError("out of time"))
    with pytest.raises(EngineUnavailableError):
        running.submit([3])
    gate.may_pass.set()
    for request in requests:
        with pytest.raises(EngineUnavailableError, match="out of time"):
            request.future.result(TIMEOUT_S)
    assert not running.failures.errors
