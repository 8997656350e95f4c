"""What a refused caller is told to wait."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from latentwire_service.engine.backend import Completion, FinishReason
from latentwire_service.engine.wait_estimate import WaitEstimate


def finished(seconds: float) -> Future[Completion]:
    future: Future[Completion] = Future()
    rows = np.zeros((0, 1), np.float32)
    future.set_result(
        Completion("", [1], rows, FinishReason.STOP, 1, queue_s=99, prefill_s=0, decode_s=seconds)
    )
    return future


def test_it_grows_with_the_queue_and_with_the_time_of_a_request() -> None:
    estimate = WaitEstimate(max_slots=4)
    for _ in range(3):
        estimate.note(finished(8.0))
    assert [estimate.seconds(n) for n in (0, 4, 40)] == [4.0, 8.0, 44.0]


def test_one_odd_request_hardly_changes_it_and_failures_do_not() -> None:
    estimate = WaitEstimate(max_slots=1)
    estimate.note(finished(1.0))
    estimate.note(finished(11.0))
    assert estimate.seconds(0) == 1.0
    failed: Future[Completion] = Future()
    failed.set_exception(RuntimeError())
    estimate.note(failed)
    gone: Future[Completion] = Future()
    gone.cancel()
    estimate.note(gone)
    assert estimate.seconds(0) == 1.0
