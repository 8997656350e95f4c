"""Slots, admission and prefill batches: rules that hold after any sequence of events."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from latentwire_service.engine.prefix_cache import PrefixCache
from latentwire_service.engine.request import Request, RequestStatus
from latentwire_service.engine.scheduler import PrefillChunk, Schedule, Scheduler
from support.engine.requests import make_request


def make(num_prompt_tokens: int) -> Request:
    return make_request([2] * num_prompt_tokens, max_new_tokens=50)


def run_step(scheduler: Scheduler, now: float = 0.0) -> Schedule:
    """Do what the engine does with a schedule, without a model."""
    schedule = scheduler.schedule(now)
    for chunk in schedule.prefill:
        chunk.request.advance_prefill(chunk.end)
        if chunk.is_last:
            chunk.request.start_decode(now)
            chunk.request.token_ids.append(7)
    for request in schedule.decode:
        request.token_ids.append(7)
    return schedule


def slots(requests: Sequence[Request]) -> list[int | None]:
    return [request.slot for request in requests]


def test_requests_are_admitted_in_order_until_the_slots_are_full() -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=16, prefixes=PrefixCache())
    requests = [make(3) for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler, now=5.0)
    assert slots(requests) == [0, 1, None, None]
    assert [request.admitted_at for request in requests[:2]] == [5.0, 5.0]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 2)
    assert list(scheduler.unfinished()) == requests


def test_a_free_slot_goes_to_the_longest_waiting_request_without_a_move() -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=16, prefixes=PrefixCache())
    requests = [make(3) for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    scheduler.remove(requests[0])
    assert not run_step(scheduler).moves
    assert slots(requests) == [None, 1, 0, None]


def test_the_last_slot_moves_into_a_gap_when_no_request_waits() -> None:
    scheduler = Scheduler(max_slots=4, prefill_chunk=64, prefixes=PrefixCache())
    requests = [make(3) for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    for _ in range(3):
        run_step(scheduler)
    scheduler.remove(requests[1])
    num_cached = requests[3].num_cached
    moves = run_step(scheduler).moves
    assert [(m.source, m.target, m.num_tokens) for m in moves] == [(3, 1, num_cached)]
    assert num_cached > 3
    assert slots(requests) == [0, None, 2, 1]


def test_slots_at_the_end_become_free_without_a_move() -> None:
    scheduler = Scheduler(max_slots=3, prefill_chunk=64, prefixes=PrefixCache())
    requests = [make(3) for _ in range(3)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    scheduler.remove(requests[2])
    scheduler.remove(requests[1])
    schedule = run_step(scheduler)
    assert not schedule.moves
    assert (schedule.decode, schedule.num_slots) == ([requests[0]], 1)


def test_a_waiting_request_can_be_removed() -> None:
    scheduler = Scheduler(max_slots=1, prefill_chunk=64, prefixes=PrefixCache())
    requests = [make(3) for _ in range(3)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    scheduler.remove(requests[1])
    scheduler.remove(requests[0])
    run_step(scheduler)
    assert slots(requests) == [None, None, 0]
    assert [request.is_finished for request in requests] == [True, True, False]


def test_short_prompts_are_prefilled_together_within_the_chunk() -> None:
    scheduler = Scheduler(max_slots=8, prefill_chunk=16, prefixes=PrefixCache())
    for length in (5, 4, 5, 3, 1):
        scheduler.add(make(length))
    chunks = run_step(scheduler).prefill
    # Three rows of width 5 fit into 16; the widest go first, for they waste the least.
    assert [chunk.request.num_prompt_tokens for chunk in chunks] == [5, 5, 4]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=8, prefixes=PrefixCache())
    short, long = make(2), make(20)
    scheduler.add(short)
    run_step(scheduler)
    scheduler.add(long)
    schedules = [run_step(scheduler) for _ in range(3)]
    assert [(c.start, c.end, c.is_last) for s in schedules for c in s.prefill] == [
        (0, 8, False),
        (8, 16, False),
        (16, 20, True),
    ]
    assert all(schedule.decode == [short] for schedule in schedules)
    assert run_step(scheduler).decode == [short, long]


def test_an_idle_scheduler_gives_an_empty_schedule() -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=8, prefixes=PrefixCache())
    assert scheduler.schedule(0.0).is_empty
    request = make(2)
    scheduler.add(request)
    run_step(scheduler)
    scheduler.remove(request)
    assert scheduler.schedule(0.0).is_empty


class Walk:
    """A random life of a scheduler, and an account of whose positions each slot holds."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.max_slots = self.rng.randint(1, 6)
        self.prefill_chunk = self.rng.choice([1, 4, 16, 64])
        self.scheduler = Scheduler(self.max_slots, self.prefill_chunk, PrefixCache())
        self.submitted: list[Request] = []
        self.admitted: list[Request] = []
        self.contents: list[Request | None] = [None] * self.max_slots

    def submit(self) -> None:
        request = make(self.rng.randint(1, 40))
        self.submitted.append(request)
        self.scheduler.add(request)

    def leave(self) -> None:
        unfinished = list(self.scheduler.unfinished())
        if unfinished:
            self.scheduler.remove(self.rng.choice(unfinished))

    def step(self, now: float) -> None:
        waiting_before = [r for r in self.submitted if r.status is RequestStatus.WAITING]
        schedule = self.scheduler.schedule(now)
        self.admitted += [r for r in waiting_before if r.status is not RequestStatus.WAITING]
        running = [r for r in self.submitted if r.slot is not None]
        assert sorted(r.slot for r in running if r.slot is not None) == list(range(len(running)))
        assert len(running) <= self.max_slots
        assert len(running) == self.scheduler.num_running
        assert self.scheduler.num_waiting == 0 or len(running) == self.max_slots
        for move in schedule.moves:
            mover = next(r for r in running if r.slot == move.target)
            assert move.num_tokens == mover.num_cached
            assert move.num_tokens == 0 or self.contents[move.source] is mover
            self.contents[move.target] = mover
        self.check_prefill(schedule.prefill)
        for request in schedule.decode:
            assert request.slot is not None
            assert self.contents[request.slot] is request
            assert request.status is RequestStatus.DECODE
            assert request.slot < schedule.num_slots
            request.token_ids.append(7)
        assert schedule.num_slots <= len(running)
        self.apply(schedule.prefill, now)

    def check_prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        in_prefill = [r for r in self.submitted if r.status is RequestStatus.PREFILL]
        assert bool(chunks) == bool(in_prefill)
        if not chunks:
            return
        oldest = min(in_prefill, key=lambda r: r.admitted_at)
        assert any(c.request.admitted_at == oldest.admitted_at for c in chunks)
        width = max(c.end - c.start for c in chunks)
        assert 1 <= width <= self.prefill_chunk
        assert len(chunks) * width <= self.prefill_chunk
        assert len({id(c.request) for c in chunks}) == len(chunks)

    def apply(self, chunks: Sequence[PrefillChunk], now: float) -> None:
        for chunk in chunks:
            request = chunk.request
            assert request.slot is not None
            assert chunk.start == request.num_prefilled < chunk.end <= request.num_prompt_tokens
            if chunk.start == 0:
                self.contents[request.slot] = request
            assert self.contents[request.slot] is request
            request.advance_prefill(chunk.end)
            if chunk.is_last:
                request.start_decode(now)
                request.token_ids.append(7)


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_of_events_keeps_the_rules(seed: int) -> None:
    walk = Walk(seed)
    for now in range(150):
        for _ in range(walk.rng.choice([0, 0, 1, 3])):
            walk.submit()
        for _ in range(walk.rng.choice([0, 0, 1, 2])):
            walk.leave()
        walk.step(float(now))
    order = {id(request): number for number, request in enumerate(walk.submitted)}
    numbers = [order[id(request)] for request in walk.admitted]
    assert numbers == sorted(numbers)
    assert len(numbers) > 4


@pytest.mark.parametrize("seed", range(5))
def test_every_request_reaches_decode(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(12):
        walk.submit()
    for now in range(12 * 41):
        walk.step(float(now))
        for request in walk.submitted:
            if request.status is RequestStatus.DECODE and len(request.token_ids) > 3:
                walk.scheduler.remove(request)
    assert all(request.is_finished for request in walk.submitted)
