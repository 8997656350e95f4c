"""One replica: whether it is up, and how many rows it may be given at a time."""

from __future__ import annotations

from latentwire import AsyncClient, InfoResponse


class Replica:
    """One replica and what this run has going on there.

    Attributes:
        index: position among the run's replicas; its name in notices.
        client: asks it, once per call.
        info: its last answer to `/info`; None before it was first up.
        is_up: whether rows are sent to it.
        num_in_flight: rows sent and not answered.
        window: most rows in flight; shrinks when the replica is overloaded.
        cool_until_s: no row is sent before, on the fleet's clock.
    """

    def __init__(self, index: int, client: AsyncClient) -> None:
        self.index = index
        self.client = client
        self.info: InfoResponse | None = None
        self.is_up = False
        self.num_in_flight = 0
        self.window = 1
        self.cool_until_s = 0.0
        self._max_window = 1
        self._num_answers = 0

    @property
    def name(self) -> str:
        """What notices call it: addresses are not for logs."""
        return f"replica {self.index}"

    @property
    def load(self) -> float:
        """Share of its window in use."""
        return self.num_in_flight / self.window

    def come_up(self, info: InfoResponse, concurrency: int | None) -> None:
        """Start sending rows to it, as many at a time as it asks for or as was asked of us."""
        self.info = info
        self._max_window = self.window = concurrency or default_window(info)
        self.is_up = True

    def note_answer(self) -> None:
        """Widen the window by one for every window of good answers, as far as it once was."""
        self._num_answers += 1
        if self._num_answers >= self.window:
            self._num_answers = 0
            self.window = min(self.window + 1, self._max_window)

    def note_overload(self, until_s: float) -> None:
        """Stop sending until then, and keep fewer rows in flight than overloaded it."""
        self.cool_until_s = max(self.cool_until_s, until_s)
        self.window = max(1, min(self.window, self.num_in_flight - 1))
        self._num_answers = 0


def default_window(info: InfoResponse) -> int:
    """Rows in flight when no number is asked for: as many as the replica has slots.

    A slot then idles from an answer's end until the next row is there: 20-40 ms for 0.9 MB latents
    on two busy cores. One row more than slots won 4 % of the time of half-second rows and 1.5 % of
    two-second ones; real rows take longer, and never wait in a queue that others use too.
    """
    return info.limits.max_slots
