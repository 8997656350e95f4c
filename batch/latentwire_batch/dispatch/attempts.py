"""A row on its way through the dispatcher, how often it is tried, and where it goes when done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latentwire import PlanLatent, ProtocolError
from latentwire_batch.tasks.results import FailedRow, FinishedRow
from latentwire_batch.tasks.rows import Row


class ResultSink(Protocol):
    """Where rows go when they are done; slow storage slows the run down by being awaited."""

    async def finished(self, row: FinishedRow) -> None:
        """Store a row with its latent."""
        ...

    async def failed(self, row: FailedRow) -> None:
        """Store that a row has none."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long the run tries.

    Attributes:
        max_retries: further tries for a row that failed.
        patience_s: how long the run waits while no replica is up.
        max_away: answers that a replica is not ready, after which a row is given up. Most say
            nothing about the row, but one that ends the replica's engine is answered so, too.
    """

    max_retries: int
    patience_s: float
    max_away: int


@dataclass(frozen=True)
class Attempt:
    """A row that is to be asked for, and what went wrong before.

    Attributes:
        row: the row.
        num_failures: tries that failed with a replica that went on living.
        num_lost: replicas that went away with it.
        num_away: replicas that were not ready for it any more.
        tried: replicas it failed on.
        not_before_s: on the run's clock.
    """

    row: Row
    num_failures: int = 0
    num_lost: int = 0
    num_away: int = 0
    tried: frozenset[int] = frozenset()
    not_before_s: float = 0.0


def check_answer(answer: PlanLatent, hidden_size: int) -> None:
    """Refuse a latent that may not get into the dataset.

    Args:
        answer: of a replica.
        hidden_size: of the replica's model.

    Raises:
        ProtocolError: for the wrong width, or a value that is not finite.
    """
    if answer.hidden_state.shape[1] != hidden_size:
        raise ProtocolError("hidden_state does not have the model's hidden size")
    if not np.isfinite(answer.hidden_state).all():
        raise ProtocolError("hidden_state holds values that are not finite")
