"""Each row leaves the device once, whatever vLLM's scheduler does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire_service.vllm_engine.row_ledger import ROWS_ARG, RowLedger


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass
class New:
    req_id: str
    prompt_len: int
    num_computed_tokens: int
    sampling_params: Any


@dataclass
class Output:
    scheduled_new_reqs: list[New] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    finished_req_ids: set[str] = field(default_factory=set)


def new(name: str, prompt: int, scheduled: int, *, max_rows: int = 9, computed: int = 0) -> Output:
    params = SimpleNamespace(extra_args={ROWS_ARG: [7, max_rows]})
    return Output([New(name, prompt, computed, params)], num_scheduled_tokens={name: scheduled})


def cached(name: str, computed: int, scheduled: int) -> Output:
    return Output(
        scheduled_cached_reqs=Cached([name], [computed]), num_scheduled_tokens={name: scheduled}
    )


def rows_of(outputs: Sequence[Output], batch: Sequence[str] = ("a",)) -> list[int]:
    ledger = RowLedger()
    found = []
    for output in outputs:
        ledger.note(output)
        found += [wanted.row for wanted in ledger.take(batch)]
    return found


TABLE = {
    "one chunk": ([new("a", 5, 5), cached("a", 5, 1), cached("a", 6, 1)], [0, 1, 2]),
    "chunks": ([new("a", 5, 2), cached("a", 2, 2), cached("a", 4, 1), cached("a", 5, 1)], [0, 1]),
    "a cached prefix": ([new("a", 5, 1, computed=4), cached("a", 5, 1)], [0, 1]),
    "preempted and computed again": (
        [new("a", 5, 5), cached("a", 5, 1), cached("a", 0, 7), cached("a", 7, 1)],
        [0, 1, 2, 3],
    ),
    "computed again in chunks that end in the plan": (
        [new("a", 3, 3), cached("a", 3, 1), cached("a", 4, 1), cached("a", 0, 4)]
        + [cached("a", 4, 2), cached("a", 6, 1)],
        [0, 1, 2, 3, 4],
    ),
    "preempted, and new to the worker": (
        [new("a", 5, 5), cached("a", 5, 1), new("a", 5, 7), cached("a", 7, 1)],
        [0, 1, 2, 3],
    ),
    "k": ([new("a", 2, 2, max_rows=1), cached("a", 2, 1), cached("a", 3, 1)], [0]),
    "k = 0": ([new("a", 2, 2, max_rows=0), cached("a", 2, 1)], []),
}


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_numbered_by_the_tokens_that_they_predict(name: str) -> None:
    outputs, expected = TABLE[name]
    assert rows_of(outputs) == expected


def test_rows_are_found_by_the_order_of_the_batch() -> None:
    ledger = RowLedger()
    first, second = new("a", 4, 4), new("b", 2, 2)
    second.scheduled_new_reqs[0].sampling_params.extra_args = {ROWS_ARG: (8, 3)}
    first.scheduled_new_reqs += second.scheduled_new_reqs
    first.num_scheduled_tokens |= second.num_scheduled_tokens
    ledger.note(first)
    taken = ledger.take(["b", "other", "a"])
    assert [(each.index, each.request, each.row) for each in taken] == [(0, 8, 0), (2, 7, 0)]


def test_requests_of_others_and_requests_that_are_not_in_the_step_have_no_rows() -> None:
    ledger = RowLedger()
    output = new("a", 2, 2)
    output.scheduled_new_reqs[0].sampling_params.extra_args = None
    ledger.note(output)
    assert ledger.take(["a"]) == []
    ledger.note(new("b", 2, 2))
    ledger.note(Output())
    assert ledger.take(["b"]) == []


def test_finished_requests_are_forgotten() -> None:
    ledger = RowLedger()
    ledger.note(new("a", 2, 2))
    assert len(ledger) == 1
    ledger.note(Output(finished_req_ids={"a"}))
    assert len(ledger) == 0


@given(
    prompt=st.integers(1, 12),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    preempt_at=st.sets(st.integers(1, 39)),
    max_rows=st.integers(0, 12),
    is_resumed_as_new=st.booleans(),
)
def test_any_schedule_gives_each_row_once_and_in_order(
    prompt: int, chunks: list[int], preempt_at: set[int], max_rows: int, is_resumed_as_new: bool
) -> None:
    outputs, num_tokens, computed = [], 0, 0
    for step, chunk in enumerate(chunks):
        is_resumed = step in preempt_at
        computed = 0 if is_resumed else computed
        scheduled = min(chunk, prompt + num_tokens - computed)
        if step == 0 or (is_resumed and is_resumed_as_new):
            outputs.append(new("a", prompt, scheduled, max_rows=max_rows, computed=computed))
        else:
            outputs.append(cached("a", computed, scheduled))
        computed += scheduled
        num_tokens += computed == prompt + num_tokens
    assert rows_of(outputs) == list(range(min(num_tokens, max_rows)))
