"""A lost device fails every waiter; the service then ends with status 1 (`test_serve_process`)."""

from __future__ import annotations

import threading

import pytest
import torch

from latentwire_service.engine.engine import Engine
from latentwire_service.engine.engine_thread import EngineThread
from latentwire_service.engine.errors import EngineUnavailableError
from latentwire_service.engine.hf.probe import refusing
from support.engine.fake_runner import FakeModelRunner
from support.engine.requests import NumberTokenizer, make_spec

TIMEOUT_S = 60

# torch 2.6 raises a plain RuntimeError.
ACCELERATOR_ERROR: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)


def lost_device() -> Exception:
    error = ACCELERATOR_ERROR.__new__(ACCELERATOR_ERROR)
    error.args = ("CUDA error: unspecified launch failure",)
    return error


def test_a_lost_device_fails_running_and_waiting_requests_and_is_reported() -> None:
    num_steps = 0
    all_submitted = threading.Event()

    def before_step() -> None:
        nonlocal num_steps
        assert all_submitted.wait(TIMEOUT_S)
        num_steps += 1
        if num_steps == 3:
            raise lost_device()

    failures: list[Exception] = []
    engine = Engine(
        FakeModelRunner(before_step=before_step),
        NumberTokenizer(),
        frozenset({0}),
        prefill_chunk=16,
        clock=lambda: 0.0,
    )
    thread = EngineThread(engine, 2, 8, lambda _stats: None, failures.append)
    thread.start()
    # Two have a slot when the device is lost, two wait for one.
    submitted = [thread.submit(make_spec([5, 6], max_new_tokens=9)) for _ in range(4)]
    all_submitted.set()
    for request in submitted:
        assert isinstance(request.future.exception(TIMEOUT_S), EngineUnavailableError)
    assert thread.stop(TIMEOUT_S)
    assert [type(error) for error in failures] == [ACCELERATOR_ERROR]
    with pytest.raises(EngineUnavailableError):
        thread.submit(make_spec([5, 6]))


@pytest.mark.skipif(ACCELERATOR_ERROR is RuntimeError, reason="torch has no such class yet")
def test_a_device_that_is_lost_while_loading_says_nothing_about_the_model() -> None:
    with pytest.raises(ACCELERATOR_ERROR), refusing("llama"):
        raise lost_device()
