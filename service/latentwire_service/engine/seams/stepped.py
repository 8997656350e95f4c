"""The seam between the engine's thread and what it steps: our engine, or another one's requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from latentwire_service.engine.backend import GenerationSpec, OnStep, StepStats
from latentwire_service.engine.errors import EngineError
from latentwire_service.engine.request import Request


class SteppedEngine(Protocol):
    """Runs requests step by step. One thread owns it; others may call `new_request` only."""

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot yet."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        ...

    @property
    def num_waiting_by_caller(self) -> Mapping[str, int]:
        """Waiting requests of each caller that has any."""
        ...

    def new_request(self, spec: GenerationSpec, on_step: OnStep | None = None) -> Request:
        """Make a request, submitted now; nothing runs before it is passed to `add`."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request."""
        ...

    def displace(self, caller: str, error: EngineError) -> None:
        """Fail the newest waiting request of a caller that has one."""
        ...

    def cancel(self, request: Request) -> None:
        """Drop a request; its slot is free from the next step on."""
        ...

    def fail_all(self, error: EngineError) -> None:
        """Fail every request, running and waiting."""
        ...

    def step(self) -> StepStats | None:
        """Run one step; return None when nothing was done."""
        ...
