"""What a failed try says about the row, the replica and the run. Pure."""

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
    """Who is to blame for a failed try."""

    ROW_IS_BAD = auto()
    """Asking again cannot help."""
    ROW_FAILED = auto()
    """May go better elsewhere; tried again a limited number of times."""
    REPLICA_LOST = auto()
    """The replica went away with the row, and perhaps because of it."""
    REPLICA_AWAY = auto()
    """The replica takes no work now; hardly ever the row's fault."""
    REPLICA_BUSY = auto()
    """The replica is overloaded; says nothing about the row."""
    RUN_IS_BAD = auto()
    """Every row would fail alike."""


@dataclass(frozen=True)
class Failure:
    """A failed try as `failures.jsonl` has it: without any address."""

    code: str
    message: str


# Refused for what they are: the same row is refused everywhere.
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
    """Word a failed try for people; a transport error's own words hold the replica's address."""
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
            return Failure("protocol", "the replica's answer breaks the wire contract")
