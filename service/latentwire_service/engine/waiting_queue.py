"""Requests that wait for a slot, in the order of their turns. Plain Python, no tensors.

Callers take turns: each free slot goes to the next caller that has a request waiting, and within a
caller to the oldest request. A caller that queues a thousand requests delays the single request of
another caller by one turn, not by a thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from latentwire_service.engine.request import Request


class WaitingQueue:
    """Waiting requests by caller. The callers are in the order of their turns."""

    def __init__(self) -> None:
        self._by_caller: dict[str, deque[Request]] = {}
        self._num_requests = 0

    def __len__(self) -> int:
        """Return the number of requests."""
        return self._num_requests

    def __iter__(self) -> Iterator[Request]:
        """Yield all requests, caller by caller."""
        for requests in self._by_caller.values():
            yield from requests

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of requests of each caller that has any."""
        return {caller: len(requests) for caller, requests in self._by_caller.items()}

    def append(self, request: Request) -> None:
        """Queue a request behind the others of its caller; a new caller gets the last turn."""
        self._by_caller.setdefault(request.spec.caller, deque()).append(request)
        self._num_requests += 1

    def popleft(self) -> Request:
        """Remove and return the oldest request of the caller whose turn it is.

        Raises:
            IndexError: the queue is empty.
        """
        if not self._by_caller:
            raise IndexError("the queue is empty")
        caller = next(iter(self._by_caller))
        # Removed and inserted again, the caller comes after the others.
        requests = self._by_caller.pop(caller)
        request = requests.popleft()
        if requests:
            self._by_caller[caller] = requests
        self._num_requests -= 1
        return request

    def remove(self, request: Request) -> None:
        """Remove a request from any place in the queue.

        Raises:
            ValueError: the request is not queued.
        """
        requests = self._by_caller.get(request.spec.caller, deque())
        requests.remove(request)
        if not requests:
            del self._by_caller[request.spec.caller]
        self._num_requests -= 1

    def newest_of(self, caller: str) -> Request:
        """Return the request of a caller that was queued last: the first one to be displaced.

        Raises:
            KeyError: the caller has none.
        """
        return self._by_caller[caller][-1]
