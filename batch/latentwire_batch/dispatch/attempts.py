"""A row on its way through the dispatcher: its tries, its limits, and its destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from latentwire import PlanLatent, ProtocolError
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion
from latentwire_batch.tasks.rows import Row


class ResultSink(Protocol):
    """Where settled rows go. Rows are awaited, so slow storage slows the run down."""

    def started(self, index: int) -> None:
        """Count a row as sent."""
        ...

    def ended(self, index: int) -> None:
        """Count a row as no longer in flight."""
        ...

    async def finished(self, row: FinishedRow) -> None:
        """Store a row with its latent."""
        ...

    async def failed(self, row: FailedRow) -> None:
        """Store why a row has no latent."""
        ...

    async def suspected(self, index: int, suspicion: Suspicion | None) -> None:
        """Store what is suspected of a row; None: nothing any more."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long the run tries.

    Attributes:
        max_retries: further tries for a row that failed.
        patience_s: longest wait while no replica is up, in seconds.
    """

    max_retries: int
    patience_s: float


@dataclass(frozen=True)
class Attempt:
    """A row to send, and the outcome of its earlier tries.

    Attributes:
        row: the row.
        num_failures: tries that failed on a replica that stayed up, broken connections included.
        num_away: tries that a replica refused because it was not ready.
        tried: indices of the replicas on which the row failed, or which ended with it.
        not_before_s: earliest moment of the next try, `time.monotonic` seconds.
        suspicion: None while no replica has ended with the row.
    """

    row: Row
    num_failures: int = 0
    num_away: int = 0
    tried: frozenset[int] = frozenset()
    not_before_s: float = 0.0
    suspicion: Suspicion | None = None


def check_answer(answer: PlanLatent, hidden_size: int) -> None:
    """Refuse a latent that must not get into the dataset.

    Args:
        answer: of a replica.
        hidden_size: of the replica's model.

    Raises:
        ProtocolError: when the width is wrong or a value is not finite.
    """
    if answer.hidden_state.shape[1] != hidden_size:
        raise ProtocolError("hidden_state does not have the model's hidden size")
    if not _is_finite(answer.hidden_state):
        raise ProtocolError("hidden_state holds values that are not finite")


def _is_finite(values: npt.NDArray[np.float32]) -> bool:
    # A sum is finite only if all values are, and needs no other array. That of huge values may
    # overflow.
    return bool(np.isfinite(np.einsum("ij->", values)) or np.isfinite(values).all())
