"""One replica: whether it is up, and how many rows it may have in flight."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Coroutine
from typing import Any

from latentwire import AsyncClient, ConnectionFailedError, InfoResponse, PlanLatent


class Replica:
    """One replica, and the rows that this run has in flight there.

    Attributes:
        index: position among the run's replicas; its name in notices.
        client: sends each request once.
        key: stands for its address in the logs, by which the next run knows it again.
        info: its last answer to `/info`; None before it was first up.
        state: why no rows are sent to it, in words without its address.
        is_up: whether rows are sent to it.
        num_in_flight: rows sent and not answered.
        window: most rows in flight; shrinks when the replica is overloaded.
        cool_until_s: no row is sent before this moment, `time.monotonic` seconds.
        is_apart: whether its rows in flight must not be joined by others.
        num_losses: how often it stopped answering.
        num_at_loss: rows that it had in flight when it last did.
        num_answers: rows that it answered.
        num_dropped: how often it was up all the while that a row got no answer.
        sending: the tasks that wait for its answers to rows.
        first_started_s: when the process started that answered first, `time.monotonic` seconds;
            None: nothing has answered, or the answer did not tell.

    Args:
        index: see above.
        client: see above.
        url: its address.
    """

    def __init__(self, index: int, client: AsyncClient, url: str) -> None:
        self.index = index
        self.client = client
        self.key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.info: InfoResponse | None = None
        self.state = "does not answer yet"
        self.is_up = False
        self.num_in_flight = 0
        self.window = 1
        self.cool_until_s = 0.0
        self.is_apart = False
        self.num_losses = 0
        self.num_at_loss = 0
        self.sending: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()
        self._max_window = 1
        self.num_answers = 0
        self.num_dropped = 0
        self._num_answers_of_window = 0
        # `time.monotonic` seconds, of the newest process that answered, and of its last answer.
        self._started_s = self._seen_s = -math.inf
        self._absent_s: float | None = None
        self.first_started_s: float | None = None

    @property
    def name(self) -> str:
        """Its name in notices, which must not show addresses."""
        return f"replica {self.index}"

    @property
    def load(self) -> float:
        """Share of its window in use."""
        return self.num_in_flight / self.window

    def come_up(self, info: InfoResponse, concurrency: int | None) -> None:
        """Start sending rows to it.

        Args:
            info: its answer to `/info`.
            concurrency: most rows in flight; None: see `default_window`.
        """
        self.info = info
        self._max_window = self.window = concurrency or default_window(info)
        self.is_up = True

    def note_absence(self) -> None:
        """Take notice that it did not answer a probe, or was not ready."""
        self._absent_s = time.monotonic()

    def note_life(self, uptime_s: float | None, sent_s: float) -> None:
        """Take notice of an answer to `/info`, which tells when the process started.

        Args:
            uptime_s: that it states. An earlier service states none; it counts as started again if
                it was absent before.
            sent_s: when it was requested, `time.monotonic` seconds.
        """
        if self._seen_s == -math.inf and uptime_s is not None:
            self.first_started_s = sent_s - uptime_s
        self._seen_s = time.monotonic()
        if uptime_s is None:
            self._started_s = self._absent_s or self._started_s
        elif sent_s - uptime_s > self._started_s:
            # Another process, and not the same one with an answer that took longer. Behind a
            # gateway it may be older than the row, and so no sign of an end.
            self._started_s = self._seen_s - uptime_s
        self._absent_s = None

    def has_ended_since(self, sent_s: float, broken_s: float) -> bool | None:
        """Whether the process that got a row has ended; None while that is not known.

        Args:
            sent_s: when the row was sent, `time.monotonic` seconds.
            broken_s: when its connection broke.
        """
        if self._started_s > sent_s:
            return True
        return False if self._seen_s > broken_s else None

    def go_down(self) -> None:
        """Stop sending rows to it."""
        self.is_up = False
        self.num_losses += 1
        self.num_at_loss = self.num_in_flight

    async def answer_of(self, request: Coroutine[Any, Any, PlanLatent]) -> PlanLatent:
        """Return the answer to a request with a row.

        Raises:
            LatentwireError: as the request does; ConnectionFailedError after `give_up`.
        """
        task = asyncio.current_task()
        assert task is not None
        self.sending.add(task)
        try:
            return await request
        except asyncio.CancelledError:
            if task not in self._given_up or task.uncancel():
                # The caller was cancelled, too.
                raise
            raise ConnectionFailedError("the replica hangs") from None
        finally:
            self.sending.discard(task)
            self._given_up.discard(task)

    def give_up(self) -> None:
        """End all requests that it has not answered."""
        for task in self.sending - self._given_up:
            self._given_up.add(task)
            task.cancel()

    def note_answer(self) -> None:
        """Widen a window that shrank, by one for every window of good answers."""
        self.num_answers += 1
        self._num_answers_of_window += 1
        if self._num_answers_of_window >= self.window:
            self._num_answers_of_window = 0
            self.window = min(self.window + 1, self._max_window)

    def note_overload(self, until_s: float) -> None:
        """Send no row before `until_s`, and then keep fewer in flight than overloaded it."""
        self.cool_until_s = max(self.cool_until_s, until_s)
        self.window = max(1, min(self.window, self.num_in_flight - 1))
        self._num_answers_of_window = 0


def default_window(info: InfoResponse) -> int:
    """Return the number of rows in flight when the user gives none: the replica's slots.

    A slot then idles from an answer's end until the next row arrives: 20-40 ms for 0.9 MB latents
    on two busy cores. One row more than slots won 4 % of the time of half-second rows and 1.5 % of
    two-second ones. Real rows take longer, and never wait in a queue that other callers use too.
    """
    return info.limits.max_slots
