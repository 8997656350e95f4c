"""The state of a row and its result. Plain values, without a file format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import EncodedRows
from latentwire_batch.tasks.rows import Row


class RowState(IntEnum):
    """State of a row."""

    PENDING = 0
    FINISHED = 1
    FAILED = 2
    KEPT = 3
    """Finished by an earlier, complete run; the new output takes it from that run's files."""
    ELSEWHERE = 4
    """Pending, and another rank plans it."""
    OUTSIDE = 5
    """Of another shard: never sent, stored or counted by this run."""


@dataclass(frozen=True)
class RowText:
    """The text columns of one row."""

    task: str
    task_id: str
    plan: str


@dataclass(frozen=True, eq=False)
class FinishedRow:
    """A row with its plan and latent.

    Attributes:
        row: the input row.
        plan: the generated text.
        hidden_state: `[num_hidden_rows, hidden_size]` float32, C order.
        prompt_tokens: length of the prompt.
        completion_tokens: number of generated tokens; at least `num_hidden_rows`.
        finish_reason: "stop" or "length".
        token_ids: the generated tokens.
        seed: that gave them.
        matrices: what is stored of it, in the order of the dataset's matrix columns; None:
            `hidden_state` as it is.
    """

    row: Row
    plan: str
    hidden_state: npt.NDArray[np.float32]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    token_ids: tuple[int, ...]
    seed: int
    matrices: tuple[EncodedRows, ...] | None = None


@dataclass(frozen=True)
class UnconfirmedLoss:
    """A replica that stayed away until the run ended: it has ended, or the network hid it.

    Attributes:
        num_together: rows that it had, the suspected one included.
        sent_at_s: when it got the row, seconds since 1970 by the clock of the machine that sent it.
        replica: see `Replica.key`.
    """

    num_together: int
    sent_at_s: float
    replica: str


@dataclass(frozen=True)
class Suspicion:
    """What is known of a row that was in flight when a replica ended.

    Attributes:
        group_size: send it with at most so many rows, itself included, and with no others.
        num_lost: replicas that ended while they had the row.
        num_lost_alone: of these, those that had no other row.
        unconfirmed: one more, which is not counted yet; None: there is none.
    """

    group_size: int
    num_lost: int = 0
    num_lost_alone: int = 0
    unconfirmed: UnconfirmedLoss | None = None

    def without_unconfirmed(self) -> Suspicion | None:
        """Return what is suspected if the unconfirmed loss does not count; None: nothing."""
        return replace(self, unconfirmed=None) if self.num_lost else None


@dataclass(frozen=True)
class FailedRow:
    """A row without a latent, and the reason.

    Attributes:
        index: of the row in the input.
        task_id: of the row.
        code: error code of the service, or of the client.
        message: the reason, in words.
    """

    index: int
    task_id: str
    code: str
    message: str


class NotStorableError(Exception):
    """One latent cannot be stored in the wanted form; the text is meant for `failures.jsonl`.

    Attributes:
        code: for `failures.jsonl`.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
