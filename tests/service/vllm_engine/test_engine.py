"""Tokens and rows of a scripted core become the answers that every engine gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.backend import Completion, FinishReason, Step, StepStats
from latentwire_service.engine.errors import (
    EngineFailedError,
    LatentInvalidError,
    QueueFullError,
    RequestCancelledError,
)
from latentwire_service.engine.request import Request
from latentwire_service.vllm_engine.engine import VllmEngine
from latentwire_service.vllm_engine.events import Event, NewTokens, RequestFailed
from latentwire_service.vllm_engine.row_wire import RowBatch
from support.engine.requests import NumberTokenizer, make_spec

WIDTH, EOS = 4, 1


class FakeCore:
    """Reports what a test puts into `upcoming`."""

    def __init__(self) -> None:
        self.upcoming: list[Event] = []
        self.submitted: list[tuple[int, tuple[int, ...], Mapping[str, Any], int]] = []
        self.aborted: list[int] = []

    def submit(
        self, request: int, prompt: Sequence[int], params: Mapping[str, Any], max_rows: int
    ) -> None:
        self.submitted.append((request, tuple(prompt), params, max_rows))

    def abort(self, request: int) -> None:
        self.aborted.append(request)

    def events(self, timeout_s: float) -> list[Event]:
        del timeout_s
        events, self.upcoming = self.upcoming, []
        return events


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def engine(core: FakeCore, now: list[float]) -> VllmEngine:
    return VllmEngine(
        core,
        lambda spec: {"seed": spec.sampling.seed},
        NumberTokenizer(),
        frozenset({EOS}),
        WIDTH,
        2,
        lambda: now[0],
    )


def row(request: int, index: int) -> list[float]:
    return [request, index, 0.5, -1.0]


def rows(*places: tuple[int, int]) -> RowBatch:
    values = np.array([row(*place) for place in places], np.float32)
    return RowBatch([place[0] for place in places], [place[1] for place in places], values)


def add(engine: VllmEngine, *args: Any, on_step: Any = None, **options: Any) -> Request:
    request = engine.new_request(make_spec(*args, **options), on_step)
    engine.add(request)
    return request


def step(engine: VllmEngine, core: FakeCore, *events: Event) -> StepStats | None:
    core.upcoming = list(events)
    return engine.step()


def completion(request: Request) -> Completion:
    return request.future.result(timeout=0)


@pytest.mark.parametrize("are_rows_first", [True, False])
def test_rows_and_tokens_meet_in_any_order(
    engine: VllmEngine, core: FakeCore, are_rows_first: bool
) -> None:
    request = add(engine, [5, 6], 3)
    assert engine.step() is None
    assert core.submitted == [(0, (5, 6), {"seed": 0}, 3)]
    events: list[Event] = [NewTokens(0, [7, 8]), NewTokens(0, [9], "length")]
    given: list[Event] = [rows((0, 0)), rows((0, 1)), rows((0, 2))]
    for event in given + events if are_rows_first else events + given:
        assert not request.future.done()
        step(engine, core, event)
    done = completion(request)
    assert done.token_ids == [7, 8, 9]
    assert done.text == "7 8 9 "
    assert done.finish_reason is FinishReason.LENGTH
    assert done.hidden_state.tolist() == [row(0, 0), row(0, 1), row(0, 2)]
    assert engine.num_running == 0
    assert core.aborted == []


@pytest.mark.parametrize(("k", "num_rows"), [(0, 0), (2, 2), (9, 3), (None, 3)])
def test_k_rows_are_kept(engine: VllmEngine, core: FakeCore, k: int | None, num_rows: int) -> None:
    request = add(engine, [5], 3, k=k)
    engine.step()
    assert core.submitted[0][3] == num_rows
    places = [(0, index) for index in range(num_rows)]
    step(engine, core, *([rows(*places)] if places else []), NewTokens(0, [7, 8, 9], "length"))
    assert completion(request).hidden_state.shape == (num_rows, WIDTH)


def test_a_token_without_its_row_waits_for_it(engine: VllmEngine, core: FakeCore) -> None:
    steps: list[Step] = []
    add(engine, [5], 3, on_step=steps.append)
    engine.step()
    step(engine, core, NewTokens(0, [7]))
    assert steps == []
    stats = step(engine, core, rows((0, 0)))
    assert [each.token_id for each in steps] == [7]
    assert steps[0].row is not None
    assert steps[0].row.tolist() == row(0, 0)
    assert stats is not None
    assert (stats.num_new_tokens, stats.num_prompt_tokens) == (1, 1)
    assert len(stats.first_token_s) == 1


def test_what_comes_after_a_stop_string_is_cut_and_vllm_is_told(
    engine: VllmEngine, core: FakeCore
) -> None:
    request = add(engine, [5], 6, stop=("8 ",))
    engine.step()
    step(engine, core, rows((0, 0), (0, 1), (0, 2)), NewTokens(0, [7, 8, 9]))
    done = completion(request)
    assert (done.token_ids, done.text) == ([7, 8], "7 ")
    assert done.finish_reason is FinishReason.STOP
    assert done.hidden_state.shape == (2, WIDTH)
    assert core.aborted == [0]
    # Reports that were on their way belong to nobody.
    step(engine, core, rows((0, 3)), NewTokens(0, [10]), RequestFailed(0, "late"))
    assert engine.num_running == 0


def test_end_of_sequence_ends_the_plan(engine: VllmEngine, core: FakeCore) -> None:
    request = add(engine, [5], 6)
    engine.step()
    step(engine, core, rows((0, 0), (0, 1)), NewTokens(0, [7, EOS], "stop"))
    done = completion(request)
    assert (done.token_ids, done.finish_reason) == ([7, EOS], FinishReason.STOP)
    assert core.aborted == []


def test_only_as_many_run_as_there_are_slots_and_callers_take_turns(
    engine: VllmEngine, core: FakeCore
) -> None:
    for caller, token in (("a", 10), ("a", 11), ("a", 12), ("b", 20)):
        add(engine, [token], 1, caller=caller)
    engine.step()
    assert [each[1] for each in core.submitted] == [(10,), (20,)]
    assert (engine.num_running, engine.num_waiting) == (2, 2)
    assert engine.num_waiting_by_caller == {"a": 2}
    step(engine, core, rows((0, 0)), NewTokens(0, [7], "length"))
    engine.step()
    assert core.submitted[-1][1] == (11,)


def test_a_cancelled_request_is_aborted_and_frees_its_slot(
    engine: VllmEngine, core: FakeCore
) -> None:
    running, other, waiting = (add(engine, [token], 2) for token in (5, 6, 7))
    engine.step()
    engine.cancel(running)
    engine.cancel(waiting)
    assert core.aborted == [0]
    for request in (running, waiting):
        with pytest.raises(RequestCancelledError):
            completion(request)
    assert (engine.num_running, engine.num_waiting) == (1, 0)
    step(engine, core, rows((0, 0), (1, 0), (1, 1)), NewTokens(1, [7, 8], "length"))
    assert completion(other).token_ids == [7, 8]
    engine.cancel(other)


FAULTS: dict[str, tuple[list[Event], type[Exception], str]] = {
    "a missing row": ([rows((0, 1))], LatentInvalidError, "row 1 came .* in place of row 0"),
    "a row twice": (
        [rows((0, 0), (0, 0)), NewTokens(0, [7])],
        LatentInvalidError,
        "row 0 .* in place of row 1",
    ),
    "another width": (
        [RowBatch([0], [0], np.zeros((1, WIDTH + 1), np.float32))],
        LatentInvalidError,
        "not 4 wide",
    ),
    "not finite": (
        [RowBatch([0], [0], np.full((1, WIDTH), np.nan, np.float32))],
        LatentInvalidError,
        "not finite",
    ),
    "refused": ([RequestFailed(0, "no memory")], EngineFailedError, "no memory"),
    "ended early": (
        [rows((0, 0)), NewTokens(0, [7], "abort")],
        EngineFailedError,
        r"ended the request early \(abort\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_one_request_leaves_the_others(
    engine: VllmEngine, core: FakeCore, name: str
) -> None:
    events, kind, message = FAULTS[name]
    broken, other = add(engine, [5], 3), add(engine, [6], 1)
    engine.step()
    step(engine, core, *events, rows((1, 0)), NewTokens(1, [9], "length"))
    with pytest.raises(kind, match=message):
        completion(broken)
    assert completion(other).token_ids == [9]
    assert engine.num_running == 0


BAD_ROW = RowBatch([0], [1], np.full((1, WIDTH), np.nan, np.float32))


@pytest.mark.parametrize(
    "reports",
    [
        [[rows((0, 0)), NewTokens(0, [7]), BAD_ROW]],
        [[rows((0, 0)), BAD_ROW, NewTokens(0, [7, 8])]],
        [[rows((0, 0)), BAD_ROW], [NewTokens(0, [7])]],
        [[rows((0, 0)), NewTokens(0, [7]), RequestFailed(0, "no memory")]],
        [[rows((0, 0), (0, 1)), NewTokens(0, [7]), RequestFailed(0, "no memory")]],
    ],
)
def test_steps_before_a_fault_are_delivered(
    engine: VllmEngine, core: FakeCore, reports: list[list[Event]]
) -> None:
    steps: list[Step] = []
    request = engine.new_request(make_spec([5], 3), steps.append)
    engine.add(request)
    engine.step()
    for events in reports:
        assert not request.future.done()
        step(engine, core, *events)
    assert [each.token_id for each in steps] == [7]
    with pytest.raises((LatentInvalidError, EngineFailedError)):
        completion(request)
    assert engine.num_running == 0


def test_a_plan_whose_rows_do_not_come_is_given_up(
    engine: VllmEngine, core: FakeCore, now: list[float]
) -> None:
    request = add(engine, [5], 2)
    engine.step()
    step(engine, core, NewTokens(0, [7, 8], "length"))
    now[0] = 10.0
    engine.step()
    assert not request.future.done()
    now[0] = 100.0
    engine.step()
    with pytest.raises(LatentInvalidError, match="sent 0 hidden rows of 2"):
        completion(request)


def test_the_time_without_a_report_counts_while_requests_run(
    engine: VllmEngine, core: FakeCore, now: list[float]
) -> None:
    now[0] = 50.0
    assert engine.stall_s == 0
    add(engine, [5], 2)
    engine.step()
    now[0] = 60.0
    assert engine.stall_s == 10
    step(engine, core, rows((0, 0)), NewTokens(0, [7]))
    assert engine.stall_s == 0


def test_displaced_and_failed_requests_get_their_errors(engine: VllmEngine) -> None:
    first, second, third = (add(engine, [token], 2) for token in (5, 6, 7))
    engine.step()
    engine.displace("", QueueFullError(1, 2.0))
    with pytest.raises(QueueFullError):
        completion(third)
    engine.fail_all(EngineFailedError("the engine failed"))
    for request in (first, second):
        with pytest.raises(EngineFailedError):
            completion(request)
    assert (engine.num_running, engine.num_waiting) == (0, 0)
