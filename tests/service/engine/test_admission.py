"""Admission to the queue: room, fairness, and the wait that a refusal announces."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire_service.engine.admission import (
    Admission,
    Admit,
    Displace,
    QueueCounts,
    Refuse,
    RetrySpread,
    SlotTime,
    greediest_of,
)
from latentwire_service.engine.backend import Completion, FinishReason

CALLERS = st.sampled_from("abcd")


def counts_of(waiting: dict[str, int], num_running: int) -> QueueCounts:
    return QueueCounts(num_running + sum(waiting.values()), waiting, mean_slot_s=2.0)


@pytest.mark.parametrize(
    ("caller", "waiting", "decision"),
    [
        ("a", {}, Admit()),
        ("a", {"a": 2}, Admit()),
        ("a", {"a": 3}, Refuse(2.5)),
        ("b", {"a": 3}, Displace("a")),
        ("b", {"a": 2, "b": 1}, Refuse(2.5)),
        ("c", {"a": 2, "b": 1}, Displace("a")),
        ("d", {"a": 1, "b": 1, "c": 1}, Refuse(2.5)),
    ],
)
def test_a_full_queue_makes_room_for_a_caller_with_fewer(
    caller: str, waiting: dict[str, int], decision: object
) -> None:
    admission = Admission(max_slots=2, max_queue=3)
    assert admission.decide(caller, counts_of(waiting, num_running=2)) == decision


def test_a_request_that_gets_a_slot_in_the_next_step_does_not_wait() -> None:
    admission = Admission(max_slots=2, max_queue=1)
    assert admission.decide("a", counts_of({"a": 2}, num_running=0)) == Admit()
    assert isinstance(admission.decide("a", counts_of({"a": 3}, num_running=0)), Refuse)


@given(
    caller=CALLERS,
    waiting=st.dictionaries(CALLERS, st.integers(1, 9), max_size=4),
    max_slots=st.integers(1, 4),
    max_queue=st.integers(1, 8),
    num_displaced=st.integers(0, 6),
)
def test_every_decision_keeps_the_rules(
    caller: str, waiting: dict[str, int], max_slots: int, max_queue: int, num_displaced: int
) -> None:
    num_unfinished = max_slots + sum(waiting.values()) + num_displaced
    counts = QueueCounts(num_unfinished, waiting, mean_slot_s=1.0)
    has_room = num_unfinished < max_slots + max_queue
    own, most = waiting.get(caller, 0), max(waiting.values(), default=0)
    match Admission(max_slots, max_queue).decide(caller, counts):
        case Admit():
            assert has_room
        case Displace(victim):
            assert not has_room
            assert waiting[victim] == most
            # After the exchange the caller is not the greedier one.
            assert own + 1 <= waiting[victim] - 1
        case Refuse(retry_after_s):
            assert not has_room
            assert retry_after_s > 0
            is_bounded = num_unfinished >= 2 * max_slots + max_queue
            assert own + 1 >= most or is_bounded


@given(submissions=st.lists(CALLERS, max_size=60), max_queue=st.integers(1, 8))
def test_a_refused_caller_has_its_share_of_the_queue(
    submissions: list[str], max_queue: int
) -> None:
    """One step is held: all that is decided meanwhile is applied as the engine's thread does."""
    max_slots = 60
    admission, waiting, num_unfinished = Admission(max_slots, max_queue), Counter[str](), max_slots
    refused: set[str] = set()
    for caller in submissions:
        decision = admission.decide(caller, QueueCounts(num_unfinished, waiting, 1.0))
        if isinstance(decision, Refuse):
            refused.add(caller)
            assert waiting[caller] + 1 >= waiting[greediest_of(waiting)]
            continue
        if isinstance(decision, Displace):
            waiting[decision.caller] -= 1
        num_unfinished += 1
        waiting[caller] += 1
        assert waiting.total() <= max_queue
    for caller in refused:
        assert waiting[caller] + 1 >= max(waiting.values())


def test_the_greediest_is_the_first_of_several() -> None:
    assert greediest_of({"a": 1, "b": 3, "c": 3}) == "b"
    with pytest.raises(ValueError, match="empty"):
        greediest_of({})


def retry_after_s(max_slots: int, num_waiting: int, mean_slot_s: float) -> float:
    counts = QueueCounts(max_slots + num_waiting, {}, mean_slot_s)
    return Admission(max_slots, max_queue=1).retry_after_s(counts)


def test_the_announced_wait_grows_with_the_queue_and_with_the_time_of_a_request() -> None:
    slot_time = SlotTime()
    assert slot_time.mean_s == 1.0
    for _ in range(3):
        slot_time.note(finished(8.0))
    waits = [retry_after_s(4, num_waiting, slot_time.mean_s) for num_waiting in (0, 4, 40)]
    assert waits == [4.0, 8.0, 44.0]


def test_one_odd_request_hardly_changes_the_mean_and_failures_do_not() -> None:
    slot_time = SlotTime()
    slot_time.note(finished(1.0))
    slot_time.note(finished(11.0))
    assert slot_time.mean_s == 2.0
    failed: Future[Completion] = Future()
    failed.set_exception(RuntimeError())
    slot_time.note(failed)
    gone: Future[Completion] = Future()
    gone.cancel()
    slot_time.note(gone)
    assert slot_time.mean_s == 2.0


def finished(seconds: float) -> Future[Completion]:
    future: Future[Completion] = Future()
    rows = np.zeros((0, 1), np.float32)
    future.set_result(
        Completion("", [1], rows, FinishReason.STOP, 1, queue_s=99, prefill_s=0, decode_s=seconds)
    )
    return future


def test_refused_requests_of_a_caller_come_again_one_after_another() -> None:
    spread = RetrySpread()
    delays = [spread.delay_s("a", 2.0, 0.25, now_s=100.0) for _ in range(5)]
    assert delays == [2.0, 2.25, 2.5, 2.75, 3.0]
    assert spread.delay_s("b", 2.0, 0.25, now_s=100.0) == 2.0
    # The times of the refused ones have passed.
    assert spread.delay_s("a", 2.0, 0.25, now_s=103.0) == 2.0


def test_the_spread_of_retries_is_bounded() -> None:
    spread = RetrySpread()
    delays = [spread.delay_s("a", 1.0, 10.0, now_s=5.0) for _ in range(100)]
    assert max(delays) == 61.0
    for number in range(1000):
        spread.delay_s(str(number), 0.0, 0.0, now_s=1000.0 + number)
    assert len(spread._next_at) < 3


def test_200_refused_requests_find_a_place_when_they_come_again() -> None:
    """20 waiting, 4 slots of 1 s: the n-th place frees up after n / 4 seconds."""
    spread = RetrySpread()
    delays = sorted(spread.delay_s("", 0.25, 0.25, now_s=0.0) for _ in range(176))
    assert all(delay >= (number + 1) / 4 for number, delay in enumerate(delays))
    assert delays[-1] <= 60.25
