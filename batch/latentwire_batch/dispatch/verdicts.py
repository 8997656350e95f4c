"""Judgement of a failed try: is the row, the replica or the run at fault? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import httpx

from latentwire import (
    ApiError,
    ConnectionFailedError,
    InvalidArgumentError,
    InvalidRequestError,
    LatentwireError,
    NotReadyError,
    QueueFullError,
    TransportError,
    TransportTimeoutError,
    UnauthorizedError,
    __version__,
)
from latentwire.sampling import SamplingFields
from latentwire_batch.tasks.results import Suspicion


class Verdict(Enum):
    """The part that a failed try speaks against."""

    ROW_IS_BAD = auto()
    """Another try cannot help."""
    ROW_FAILED = auto()
    """Another replica may succeed; the row is retried a limited number of times."""
    REPLICA_ENDED = auto()
    """The replica says that it ended while it had the row, perhaps because of it."""
    CONNECTION_BROKE = auto()
    """The replica had the row, and has ended or not: its next answer tells."""
    REPLICA_AWAY = auto()
    """The replica did not take the row."""
    REPLICA_BUSY = auto()
    """The replica is overloaded, whatever the row."""
    RUN_IS_BAD = auto()
    """Every row would fail in the same way."""


# The replica takes no rows until it answers `/ready` again.
LOSSES = frozenset({Verdict.REPLICA_ENDED, Verdict.CONNECTION_BROKE, Verdict.REPLICA_AWAY})


@dataclass(frozen=True)
class Failure:
    """A failed try in the words of `failures.jsonl`, which hold no address."""

    code: str
    message: str


# The row itself is at fault, so every replica would refuse it.
_BAD_ROW_STATUSES = frozenset({400, 404, 405, 413, 422})


# Equal in every row's request, so that every row would be refused alike.
_RUN_FIELDS = frozenset({*SamplingFields.model_fields, "date"})

# No request was sent: nothing listens, no packet comes back, or a proxy has no way to the replica.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


def verdict_of(error: LatentwireError) -> Verdict:
    """Judge a failed try."""
    match error:
        case UnauthorizedError():
            return Verdict.RUN_IS_BAD
        case QueueFullError():
            return Verdict.REPLICA_BUSY
        case NotReadyError():
            has_ended = error.body.engine_failed
            return Verdict.REPLICA_ENDED if has_ended else Verdict.REPLICA_AWAY
        case TransportError() if isinstance(error.__cause__, _UNSENT):
            return Verdict.REPLICA_AWAY
        case ConnectionFailedError():
            return Verdict.CONNECTION_BROKE
        case InvalidArgumentError():
            return Verdict.ROW_IS_BAD
        case InvalidRequestError() if error.body.field in _RUN_FIELDS:
            return Verdict.RUN_IS_BAD
        case ApiError() if error.status in _BAD_ROW_STATUSES:
            return Verdict.ROW_IS_BAD
        case _:
            return Verdict.ROW_FAILED


def run_refusal(error: LatentwireError, name: str, version: str) -> str:
    """Word an error for which every row would fail.

    Args:
        error: whose verdict is RUN_IS_BAD.
        name: of the replica.
        version: of the replica's service.
    """
    if not isinstance(error, InvalidRequestError):
        return f"--api-key: {name} rejected the key"
    flag = "--" + str(error.body.field).replace("_", "-")
    return (
        f"{flag}: {name} refuses it ({error.body.detail}); it is latentwire {version}, and this is "
        f"{__version__}"
    )


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


def failure_of_guilty(suspicion: Suspicion) -> Failure:
    """Word the failure of a row that ends replicas."""
    return Failure(
        "ends-replica",
        f"{suspicion.num_lost} times a replica ended while it had this row, "
        f"{suspicion.num_lost_alone} of them without any other row",
    )
