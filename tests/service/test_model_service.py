"""The service over a fake backend, without HTTP: what it reports, and what it never lets out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from latentwire.protocol import PlanLatentRequest
from latentwire_service.engine.backend import BackendInfo, Step
from latentwire_service.engine.errors import (
    EngineUnavailableError,
    InvalidParamsError,
    LatentInvalidError,
)
from latentwire_service.model_service import ModelService, Observers, Plan, State
from latentwire_service.request_builder import Submission
from latentwire_service.settings import Settings
from support.fake_backend import FakeBackend, Rows
from support.gate import TIMEOUT_S
from support.tiny_shape import HIDDEN_SIZE

SETTINGS = Settings(model="models/tiny", max_slots=2)


def submission(**fields: Any) -> Submission:
    given = {"task": "Wash the mug.", "max_new_tokens": 4, "seed": 3} | fields
    return Submission(PlanLatentRequest.model_validate(given), k=None)


class Service:
    """A loaded service and what it reports."""

    def __init__(
        self,
        change_rows: Callable[[Rows], Rows] = lambda rows: rows,
        max_new_tokens_limit: int | None = None,
    ) -> None:
        self.reported: list[tuple[Plan, BackendInfo]] = []
        is_loaded = threading.Event()
        observers = Observers(
            on_completion=lambda plan, backend: self.reported.append((plan, backend)),
            on_loaded=is_loaded.set,
        )
        create_backend = partial(FakeBackend, SETTINGS, change_rows=change_rows)
        self.service = ModelService(create_backend, observers, max_new_tokens_limit)
        self.service.start_loading()
        assert is_loaded.wait(TIMEOUT_S)
        self.service._loader.join(TIMEOUT_S)

    def plan(self, **fields: Any) -> Plan:
        return asyncio.run(self.service.plan(submission(**fields)))

    def stream(self, **fields: Any) -> list[list[Step] | Plan]:
        async def read() -> list[list[Step] | Plan]:
            return [item async for item in self.service.stream(submission(**fields))]

        return asyncio.run(read())


def test_each_completion_is_reported_with_the_id_of_its_answer() -> None:
    running = Service()
    whole = running.plan()
    *_, streamed = running.stream()
    assert isinstance(streamed, Plan)
    assert [plan for plan, _ in running.reported] == [whole, streamed]
    assert whole.plan_id != streamed.plan_id
    assert all(plan.plan_id.startswith("plan-") for plan in (whole, streamed))
    assert {backend.model_id for _, backend in running.reported} == {"tiny"}
    assert whole.seed == 3


@pytest.mark.parametrize(
    ("change_rows", "message"),
    [
        (lambda rows: rows[:-1], "3 hidden rows instead of 4"),
        (lambda rows: np.concatenate([rows, rows]), "8 hidden rows instead of 4"),
        (lambda rows: rows[:, 1:], f"not {HIDDEN_SIZE} wide"),
        (lambda rows: rows.ravel(), f"not {HIDDEN_SIZE} wide"),
        (lambda rows: rows * np.float32(np.nan), "not finite"),
        (lambda rows: rows + np.float32(np.inf), "not finite"),
    ],
)
def test_an_invalid_latent_of_any_backend_gets_no_answer(
    change_rows: Callable[[Rows], Rows], message: str
) -> None:
    running = Service(change_rows)
    with pytest.raises(LatentInvalidError, match=message):
        running.plan()
    with pytest.raises(LatentInvalidError, match=message):
        running.stream()
    assert running.reported == []


def test_a_request_beyond_the_services_limit_is_refused() -> None:
    running = Service(max_new_tokens_limit=3)
    with pytest.raises(InvalidParamsError, match="must not exceed 3"):
        running.plan()
    assert len(running.plan(max_new_tokens=3).completion.token_ids) == 3


def test_a_drained_service_refuses_requests() -> None:
    running = Service()
    assert running.service.is_working
    assert running.service.drain(TIMEOUT_S)
    assert running.service.state is State.DRAINING
    assert not running.service.is_working
    with pytest.raises(EngineUnavailableError, match="the service is draining"):
        running.plan()


def test_a_backend_that_cannot_be_made_fails_the_service() -> None:
    def break_down(on_step: object, on_failure: object) -> FakeBackend:
        raise RuntimeError(f"no such device for {on_step} and {on_failure}")

    failed = threading.Event()
    service = ModelService(break_down, Observers(on_failed=failed.set))
    assert service.occupancy is None
    service.start_loading()
    assert failed.wait(TIMEOUT_S)
    assert service.state is State.FAILED
    with pytest.raises(EngineUnavailableError, match="the service is failed"):
        _ = service.info
