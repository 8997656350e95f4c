"""The latent's invariant, and when a request ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentwire_service.engine.backend import FinishReason
from latentwire_service.engine.errors import InvalidParamsError, LatentInvalidError
from latentwire_service.engine.request import HiddenRows, Request, RequestStatus
from latentwire_service.engine.sampling_params import SamplingParams
from support.engine.requests import make_request


def rows_with(values: list[list[float]], max_rows: int) -> HiddenRows:
    rows = HiddenRows(max_rows, 2)
    for value in values:
        rows.append(np.array(value, np.float32))
    return rows


@pytest.mark.parametrize(("max_rows", "num_tokens"), [(2, 2), (2, 9), (5, 2)])
def test_rows_of_the_right_number_pass(max_rows: int, num_tokens: int) -> None:
    values = [[1.0, 2.0], [3.0, 4.0]]
    checked = rows_with(values, max_rows).checked(num_tokens)
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous
    assert checked.tolist() == values


def test_a_request_may_keep_no_rows() -> None:
    rows = HiddenRows(0, 7)
    assert rows.is_full
    assert rows.checked(5).shape == (0, 7)


@pytest.mark.parametrize(("max_rows", "num_tokens"), [(5, 3), (3, 9), (5, 1)])
def test_missing_or_surplus_rows_are_refused(max_rows: int, num_tokens: int) -> None:
    with pytest.raises(LatentInvalidError, match="2 hidden rows instead of"):
        rows_with([[1.0, 2.0], [3.0, 4.0]], max_rows).checked(num_tokens)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(LatentInvalidError, match="not finite"):
        rows_with([[1.0, 2.0], [3.0, value]], 2).checked(2)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([5, 6, 7, 8], FinishReason.LENGTH),
        ([5, 1], FinishReason.STOP),
        ([5, 6, 7, 1], FinishReason.STOP),
        ([5, 6, 7, 9], FinishReason.STOP),
        ([5, 6, 7], None),
    ],
)
def test_a_stop_wins_over_the_length(tokens: list[int], reason: FinishReason | None) -> None:
    request = make_request([2], max_new_tokens=4, stop=("9",))
    request.admit(slot=0, now=0.0)
    request.advance_prefill(1)
    request.start_decode(now=0.0)
    for token in tokens:
        assert request.finish_reason is None
        request.append_token(token, frozenset({1}))
    assert request.finish_reason is reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("stop", ("",)),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    given: dict[str, Any] = {"max_new_tokens": 1, "seed": 0, field: value}
    with pytest.raises(InvalidParamsError) as caught:
        SamplingParams(**given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "is_greedy"),
    [({}, False), ({"temperature": 0.0}, True), ({"do_sample": False}, True)],
)
def test_zero_temperature_and_no_sampling_are_greedy(
    changes: dict[str, Any], is_greedy: bool
) -> None:
    params = SamplingParams(max_new_tokens=1, seed=0, **changes)
    assert params.is_greedy is is_greedy


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_row_of_another_width_is_refused(width: int) -> None:
    rows = HiddenRows(2, 4)
    rows.append(np.ones(4, dtype=np.float32))
    rows.append(np.ones(width, dtype=np.float32))
    with pytest.raises(LatentInvalidError, match="not 4 wide"):
        rows.checked(2)


def in_prefill(num_prompt_tokens: int = 3) -> Request:
    request = make_request([2] * num_prompt_tokens)
    request.admit(slot=1, now=5.0)
    return request


def in_decode() -> Request:
    request = in_prefill()
    request.advance_prefill(3)
    request.start_decode(now=7.0)
    return request


def test_a_request_goes_from_waiting_to_prefill_to_decode_to_finished() -> None:
    request = make_request([2, 2, 2])
    assert (request.status, request.slot, request.num_cached) == (RequestStatus.WAITING, None, 0)
    request.admit(slot=1, now=5.0)
    assert (request.status, request.slot, request.admitted_at) == (RequestStatus.PREFILL, 1, 5.0)
    request.advance_prefill(2)
    request.advance_prefill(3)
    assert request.num_cached == 3
    assert request.start_decode(now=7.0) == 7.0
    assert request.status is RequestStatus.DECODE
    request.append_token(8, frozenset())
    request.append_token(9, frozenset())
    request.move_to(0)
    assert (request.slot, request.num_cached) == (0, 4)
    request.finish()
    assert (request.is_finished, request.slot) == (True, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda: in_prefill().admit(slot=2, now=0.0),
        lambda: in_prefill().advance_prefill(0),
        lambda: in_prefill().advance_prefill(4),
        lambda: in_prefill().start_decode(now=0.0),
        lambda: in_prefill().append_token(5, frozenset()),
        lambda: in_decode().advance_prefill(3),
        lambda: in_decode().start_decode(now=0.0),
        lambda: make_request([2]).move_to(0),
        lambda: make_request([2]).completion(now=0.0),
    ],
)
def test_a_change_out_of_turn_is_our_bug(change: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        change()


def test_only_methods_change_the_state_of_a_request() -> None:
    request = in_prefill()
    for name in ("status", "slot", "num_prefilled", "admitted_at", "finish_reason"):
        with pytest.raises(AttributeError):
            setattr(request, name, None)
