"""Which hidden rows of a vLLM step leave the device: plain Python, in vLLM's worker process.

A row's index follows from its position alone: the row at the last computed position of a request
predicts the token after it. So chunks of a prompt, preemption, recomputation and cached prefixes
need no cases of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

# The key of `SamplingParams.extra_args` that holds the number of a request and its most rows.
ROWS_ARG = "latentwire_rows"


class ScheduledNew(Protocol):
    """A request that a step schedules for the first time."""

    req_id: str
    num_computed_tokens: int
    sampling_params: Any

    @property
    def prompt_len(self) -> int:
        """Number of tokens of the prompt."""
        ...


class ScheduledCached(Protocol):
    """The other requests of a step."""

    req_ids: list[str]
    num_computed_tokens: list[int]


class Scheduled(Protocol):
    """What this module reads of vLLM's `SchedulerOutput`."""

    @property
    def scheduled_new_reqs(self) -> Sequence[ScheduledNew]:
        """Requests that are new to the worker."""
        ...

    @property
    def scheduled_cached_reqs(self) -> ScheduledCached:
        """Requests that the worker knows."""
        ...

    @property
    def num_scheduled_tokens(self) -> Mapping[str, int]:
        """Positions that the step computes, by request."""
        ...

    @property
    def finished_req_ids(self) -> AbstractSet[str]:
        """Requests that ended since the last step."""
        ...


@dataclass(frozen=True, slots=True)
class WantedRow:
    """A row that leaves the device.

    Attributes:
        index: of its request in the batch.
        request: number of the request in this service.
        row: t, for the row that predicts generated token t.
    """

    index: int
    request: int
    row: int


@dataclass(slots=True)
class _Tracked:
    request: int
    num_prompt: int
    max_rows: int
    num_taken: int = 0


class RowLedger:
    """Keeps, for each request of this service, which of its rows were taken."""

    def __init__(self) -> None:
        self._tracked: dict[str, _Tracked] = {}
        self._ends: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of requests that are tracked."""
        return len(self._tracked)

    def note(self, scheduled: Scheduled) -> None:
        """Read what the next step computes."""
        for req_id in scheduled.finished_req_ids:
            self._tracked.pop(req_id, None)
        num_scheduled = scheduled.num_scheduled_tokens
        self._ends = {}
        for new in scheduled.scheduled_new_reqs:
            self._add(new)
            self._ends[new.req_id] = new.num_computed_tokens + num_scheduled[new.req_id]
        cached = scheduled.scheduled_cached_reqs
        for req_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self._ends[req_id] = num_computed + num_scheduled[req_id]

    def take(self, batch: Sequence[str]) -> list[WantedRow]:
        """Return the rows to copy, and note that they are taken.

        Args:
            batch: ids of the requests of the step, in the order of their rows.
        """
        wanted = []
        for index, req_id in enumerate(batch):
            tracked, end = self._tracked.get(req_id), self._ends.get(req_id)
            if tracked is None or end is None:
                continue
            row = end - tracked.num_prompt
            # Negative: the end of a chunk of the prompt. Below num_taken: computed again.
            if tracked.num_taken <= row < tracked.max_rows:
                tracked.num_taken = row + 1
                wanted.append(WantedRow(index, tracked.request, row))
        return wanted

    def _add(self, new: ScheduledNew) -> None:
        # A runner may get a preempted request as a new one.
        if new.req_id in self._tracked:
            return
        extra = getattr(new.sampling_params, "extra_args", None) or {}
        if ROWS_ARG in extra:
            request, max_rows = extra[ROWS_ARG]
            self._tracked[new.req_id] = _Tracked(request, new.prompt_len, max_rows)
