"""Requests that wait for a slot, and whose turn it is. Plain Python, no tensors.

Callers take turns: each slot that falls free goes to the next caller that has a request waiting,
and within a caller to the oldest one. A caller that queues a thousand requests delays another's
single one by one turn, not by a thousand.
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
        """Requests of each caller that has any."""
        return {caller: len(requests) for caller, requests in self._by_caller.items()}

    def append(self, request: Request) -> None:
        """Queue a request behind its caller's others; a new caller's turn is the last."""
        self._by_caller.setdefault(request.spec.caller, deque()).append(request)
        self._num_requests += 1

    def popleft(self) -> Request:
        """Take the oldest request of the caller whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        if not self._by_caller:
            raise IndexError("nothing waits")
        caller = next(iter(self._by_caller))
        # Out and in again: behind the others.
        requests = self._by_caller.pop(caller)
        request = requests.popleft()
        if requests:
            self._by_caller[caller] = requests
        self._num_requests -= 1
        return request

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands.

        Raises:
            ValueError: it does not wait.
        """
        requests = self._by_caller.get(request.spec.caller, deque())
        requests.remove(request)
        if not requests:
            del self._by_caller[request.spec.caller]
        self._num_requests -= 1

    def newest_of_the_greediest(self) -> Request:
        """Return the last request of the caller that has the most: the first to give way.

        Raises:
            IndexError: nothing waits.
        """
        if not self._by_caller:
            raise IndexError("nothing waits")
        return max(self._by_caller.values(), key=len)[-1]
