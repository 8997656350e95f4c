"""Judgement of a failed try: is the row, the replica or the run at fault? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from latentwire import (
    ApiError,
    ConnectionFailedError,
    InvalidArgumentError,
    LatentwireError,
    NotReadyError,
    QueueFullError,
    TransportTimeoutError,
    UnauthorizedError,
)


class Verdict(Enum):
    """The part that a failed try speaks against."""

    ROW_IS_BAD = auto()
    """Another try cannot help."""
    ROW_FAILED = auto()
    """Another replica may succeed; the row is retried a limited number of times."""
    REPLICA_LOST = auto()
    """The replica went away with the row, perhaps because of it."""
    REPLICA_AWAY = auto()
    """The replica takes no work now, rarely because of the row."""
    REPLICA_BUSY = auto()
    """The replica is overloaded, whatever the row."""
    RUN_IS_BAD = auto()
    """Every row would fail in the same way."""


@dataclass(frozen=True)
class Failure:
    """A failed try in the words of `failures.jsonl`, which hold no address."""

    code: str
    message: str


# The row itself is at fault, so every replica would refuse it.
_BAD_ROW_STATUSES = frozenset({400, 404, 405, 413, 422})


def verdict_of(error: LatentwireError) -> Verdict:
    """Judge a failed try."""
    match error:
        case UnauthorizedError():
            return Verdict.RUN_IS_BAD
        case QueueFullError():
            return Verdict.REPLICA_BUSY
        case NotReadyError():
            return Verdict.REPLICA_AWAY
        case ConnectionFailedError():
            return Verdict.REPLICA_LOST
        case InvalidArgumentError():
            return Verdict.ROW_IS_BAD
        case ApiError() if error.status in _BAD_ROW_STATUSES:
            return Verdict.ROW_IS_BAD
        case _:
            return Verdict.ROW_FAILED


def failure_of(error: LatentwireError) -> Failure:
    """Word a failed try. A transport error's own text holds the replica's address."""
    match error:
        case ApiError():
            return Failure(error.code, error.body.detail)
        case InvalidArgumentError():
            return Failure("invalid-request", str(error))
        case ConnectionFailedError():
            return Failure("connection-failed", "the connection to the replica broke")
        case TransportTimeoutError():
            return Failure("timeout", "the replica did not answer in time")
        case _:
            return Failure("protocol", "the replica's answer violates the wire contract")
