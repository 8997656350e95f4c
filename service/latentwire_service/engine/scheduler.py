"""Assigns slots to requests and plans each step. Plain Python, no tensors.

Slots in use are always a dense prefix ``0..n-1``: a decode step then reads the KV cache as a view,
without gathering. A free slot goes to the next waiting request; when none waits, the request in the
last slot moves into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentwire_service.engine.prefix_cache import PrefixCache, PrefixMatch
from latentwire_service.engine.request import Request, RequestStatus
from latentwire_service.engine.waiting_queue import WaitingQueue

# Few requests are scored together where the vocabulary leaves room for few positions: passes over
# single positions would be slow.
_MIN_SCORED = 16


@dataclass(frozen=True, slots=True)
class SlotMove:
    """Keys and values of `num_tokens` positions are copied from one slot to another."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PrefixLoad:
    """The first positions of a slot are copied from a kept prefix."""

    slot: int
    match: PrefixMatch


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Positions ``start..end-1`` of one request's prompt, and of its plan where that is given."""

    request: Request
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether all of it is computed after this chunk."""
        return self.end == self.request.num_to_prefill

    @property
    def num_scored(self) -> int:
        """Number of its last positions that each predict a given token."""
        return _num_scored(self.request, self.start, self.end)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The work of one step, in this order: moves, loads, prefill, decode.

    Attributes:
        moves: slots to copy.
        loads: kept prefixes to copy into slots.
        prefill: prompt chunks to compute.
        decode: requests that get one more token, each in its own slot.
        num_slots: length of the dense prefix of slots that a decode step covers; slots in it that
            are still in prefill are not in `decode`.
    """

    moves: Sequence[SlotMove]
    loads: Sequence[PrefixLoad]
    prefill: Sequence[PrefillChunk]
    decode: Sequence[Request]
    num_slots: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.prefill and not self.decode


class Scheduler:
    """Waiting and running requests.

    Args:
        max_slots: sequences in the KV cache at once.
        prefill_chunk: most prompt positions computed in one step, padding included, so that
            running requests never wait longer than for one chunk.
        prefixes: kept prompt prefixes, whose positions need no computation.
        max_scored: most positions of one step that score given tokens, because the logits of each
            take memory.
    """

    def __init__(
        self, max_slots: int, prefill_chunk: int, prefixes: PrefixCache, max_scored: int = 1024
    ) -> None:
        self._max_scored = max_scored
        self._prefixes = prefixes
        self._max_slots = max_slots
        self._prefill_chunk = prefill_chunk
        self._waiting = WaitingQueue()
        self._slots: list[Request | None] = []

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._slots) - self._slots.count(None)

    def unfinished(self) -> Iterator[Request]:
        """All requests, running ones first."""
        yield from (request for request in self._slots if request is not None)
        yield from self._waiting

    @property
    def waiting(self) -> WaitingQueue:
        """Requests that have no slot yet; changed by this class only."""
        return self._waiting

    def add(self, request: Request) -> None:
        """Queue a request behind the others of its caller; callers take turns."""
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Remove a request, running or waiting; its slot is free from the next step on."""
        if request.slot is None:
            self._waiting.remove(request)
        else:
            self._slots[request.slot] = None
        request.finish()

    def schedule(self, now: float) -> Schedule:
        """Admit what fits, close the gaps, and plan the next step.

        Args:
            now: seconds on the engine's clock; becomes the admission time.
        """
        self._admit(now)
        moves = self._close_gaps()
        running = [request for request in self._slots if request is not None]
        decode = [request for request in running if request.status is RequestStatus.DECODE]
        # Empty in most steps: then none of the passes below looks at every running request.
        prefilling = (
            [request for request in running if request.status is RequestStatus.PREFILL]
            if len(decode) < len(running)
            else []
        )
        loads = self._match_prefixes(prefilling)
        return Schedule(
            moves=moves,
            loads=loads,
            prefill=self._prefill_batch(prefilling),
            decode=decode,
            num_slots=_num_slots(decode),
        )

    def _admit(self, now: float) -> None:
        gaps = [slot for slot, request in enumerate(self._slots) if request is None]
        while self._waiting and (gaps or len(self._slots) < self._max_slots):
            request = self._waiting.popleft()
            if gaps:
                slot = gaps.pop(0)
                self._slots[slot] = request
            else:
                slot = len(self._slots)
                self._slots.append(request)
            request.admit(slot, now)

    def _close_gaps(self) -> list[SlotMove]:
        moves = []
        while None in self._slots:
            last = self._slots.pop()
            if last is None:
                continue
            target = self._slots.index(None)
            assert last.slot is not None
            moves.append(SlotMove(last.slot, target, last.num_cached))
            self._slots[target] = last
            last.move_to(target)
        return moves

    def _match_prefixes(self, prefilling: Sequence[Request]) -> list[PrefixLoad]:
        """Let requests that have not begun skip positions that are kept.

        This runs in every step, not at admission: of many requests admitted together, those that
        wait for their chunk can use what the first ones compute.
        """
        loads = []
        for request in prefilling:
            if request.num_prefilled == 0:
                match = self._prefixes.match(request.spec.prompt)
                if match is not None:
                    assert request.slot is not None
                    request.advance_prefill(match.num_tokens)
                    loads.append(PrefixLoad(request.slot, match))
        return loads

    def _prefill_batch(self, prefilling: Sequence[Request]) -> list[PrefillChunk]:
        """Return the chunks to compute together, padded to one width.

        The request admitted first sets the width, so that no request is passed over without end.
        Requests that fit under it join, longest first, because they waste the least padding.
        """
        if not prefilling:
            return []
        oldest = min(prefilling, key=lambda r: r.admitted_at)
        width = min(_remaining(oldest), self._prefill_chunk)
        others = [r for r in prefilling if r is not oldest and _remaining(r) <= width]
        others.sort(key=_remaining, reverse=True)
        batch = [oldest, *others][: max(1, self._prefill_chunk // width)]
        # All of them are computed with as many outputs as the one that scores most positions.
        if any(_num_scored(r, r.num_prefilled, r.num_prefilled + width) for r in batch):
            batch = batch[: max(1, self._max_scored // _MIN_SCORED)]
        max_scored = max(1, self._max_scored // len(batch))
        return [self._chunk(request, width, max_scored) for request in batch]

    def _chunk(self, request: Request, width: int, max_scored: int) -> PrefillChunk:
        start = request.num_prefilled
        end = start + min(width, _remaining(request))
        num_excess = max(0, _num_scored(request, start, end) - max_scored)
        return PrefillChunk(request, start, end - num_excess)


def _num_slots(decode: Sequence[Request]) -> int:
    """Return the number of slots up to the last of these requests, which are in slot order."""
    if not decode:
        return 0
    last = decode[-1].slot
    assert last is not None
    return last + 1


def _remaining(request: Request) -> int:
    return request.num_to_prefill - request.num_prefilled


def _num_scored(request: Request, start: int, end: int) -> int:
    """Return how many of positions ``start..end-1`` predict a given token.

    The last position of the prompt predicts the first one.
    """
    if not request.is_given:
        return 0
    return max(0, min(end, request.num_to_prefill) - max(start, request.num_prompt_tokens - 1))
