"""Whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latentwire_service.engine.request import Request
from latentwire_service.engine.waiting_queue import WaitingQueue
from support.engine.requests import make_request


def waiting(callers: str) -> WaitingQueue:
    """One request per letter, of the caller of that name; its prompt is its position."""
    queue = WaitingQueue()
    for position, caller in enumerate(callers):
        queue.append(of(caller, position))
    return queue


def of(caller: str, position: int) -> Request:
    return make_request([position + 1], caller=caller)


def order(queue: WaitingQueue) -> Iterator[str]:
    while len(queue):
        request = queue.popleft()
        yield f"{request.spec.caller}{request.spec.prompt.token_ids[0] - 1}"


@pytest.mark.parametrize(
    ("callers", "expected"),
    [
        ("aaa", "a0 a1 a2"),
        ("aaab", "a0 b3 a1 a2"),
        ("aabbc", "a0 b2 c4 a1 b3"),
        ("abaaac", "a0 b1 c5 a2 a3 a4"),
        ("", ""),
    ],
)
def test_callers_take_turns(callers: str, expected: str) -> None:
    assert " ".join(order(waiting(callers))) == expected


def test_a_new_caller_waits_for_one_turn_of_each_other_not_for_their_queues() -> None:
    queue = waiting("a" * 1000 + "b" * 1000)
    queue.append(of("c", 0))
    turns = [queue.popleft().spec.caller for _ in range(4)]
    assert turns == ["a", "b", "c", "a"]


def test_a_removed_request_leaves_the_others_in_order() -> None:
    queue = waiting("aab")
    queue.remove(list(queue)[0])
    assert queue.counts == {"a": 1, "b": 1}
    assert list(order(queue)) == ["a1", "b2"]
    with pytest.raises(ValueError, match="not in deque"):
        queue.remove(of("a", 0))
    with pytest.raises(IndexError):
        queue.popleft()


def test_the_newest_request_of_a_caller_is_the_last_one_queued() -> None:
    newest = waiting("abbab" + "b").newest_of("b")
    assert (newest.spec.caller, newest.spec.prompt.token_ids) == ("b", (6,))
    with pytest.raises(KeyError):
        WaitingQueue().newest_of("b")
