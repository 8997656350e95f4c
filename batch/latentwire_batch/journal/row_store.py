"""States and results of an unfinished run's rows, on disk.

In memory it keeps 11 bytes per input row, whatever the size of the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import EncodedRows
from latentwire_batch.journal.record_log import Record, RecordLog, RecordRef
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.shards.shard import ALL_ROWS, Shard
from latentwire_batch.tasks.results import FailedRow, FinishedRow, RowState, RowText, Suspicion


class RecordKind(IntEnum):
    """Types of record in the log."""

    FINISHED = 1
    FAILED = 2
    ELAPSED = 3
    SUSPECT = 4


@dataclass(frozen=True)
class StoredRow:
    """A finished row without its latent.

    Attributes:
        text: its text columns.
        num_steps: rows of the latent.
        prompt_tokens: length of the prompt.
        completion_tokens: tokens generated.
        finish_reason: "stop" or "length".
        token_ids: the generated tokens; None in a log of an earlier version.
        seed: that gave them; None in a log of an earlier version.
        shapes: rows and width of each stored matrix; None: the latent alone, as float32.
    """

    text: RowText
    num_steps: int
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    token_ids: Sequence[int] | None = None
    seed: int | None = None
    shapes: Sequence[tuple[int, int]] | None = None


class RowStore:
    """Finished and failed rows, appended to a log and found by index.

    Appending and syncing may be called from worker threads, one append at a time.

    Args:
        log: receives the records; the store closes it.
        num_rows: rows of the input.
        others: logs of other ranks, which are only read; the store closes them.
    """

    def __init__(self, log: RecordLog, num_rows: int, others: Sequence[RecordLog] = ()) -> None:
        self._log = log
        self._logs = (log, *others)
        self._log_numbers = np.zeros(num_rows, dtype=np.uint16)
        self._states = np.full(num_rows, RowState.PENDING, dtype=np.uint8)
        self._offsets = np.zeros(num_rows, dtype=np.int64)
        self._elapsed_s = 0.0
        self._suspicions: dict[int, Suspicion] = {}

    @property
    def elapsed_s(self) -> float:
        """Recorded seconds of all runs on this log."""
        return self._elapsed_s

    def keep(self, indices: npt.NDArray[np.bool_]) -> None:
        """Mark rows that a complete earlier run has finished.

        Args:
            indices: `[num_rows]` bool, True for such rows.
        """
        self._states[indices & (self._states == RowState.PENDING)] = RowState.KEPT

    def recover(self) -> None:
        """Read the states of the rows from the logs. Must run before the first append."""
        for number, log in enumerate(self._logs):
            for ref in log.recover():
                if ref.kind == RecordKind.ELAPSED:
                    # The other ranks ran at the same time as this one.
                    if log is self._log:
                        self._elapsed_s += float(log.read_meta(ref.offset)["elapsed_s"])
                elif ref.kind == RecordKind.SUSPECT:
                    self._suspicions[ref.row] = Suspicion(**log.read_meta(ref.offset))
                elif 0 <= ref.row < self._states.size:
                    self._recover_row(ref, number)

    def reopen_failed(self) -> None:
        """Make the rows that failed pending again."""
        self._states[self._states == RowState.FAILED] = RowState.PENDING

    def restrict(self, shard: Shard) -> None:
        """Mark the rows of other shards. Must run before `keep`."""
        self._states[~shard.mask(self._states.size)] = RowState.OUTSIDE

    def leave_to_others(self, rank: Rank, shard: Shard = ALL_ROWS) -> None:
        """Mark the pending rows of other ranks, which this one must not send."""
        places = np.arange(self._states.size) // shard.count
        is_own = places % rank.count == rank.index
        self._states[(self._states == RowState.PENDING) & ~is_own] = RowState.ELSEWHERE

    def is_pending(self, index: int) -> bool:
        """Whether a row still has to be sent."""
        return bool(self._states[index] == RowState.PENDING)

    def suspicion(self, index: int) -> Suspicion | None:
        """Return what an earlier run suspected of a pending row."""
        return self._suspicions.get(index)

    def count(self, state: RowState) -> int:
        """Count the rows in one state."""
        return int(np.count_nonzero(self._states == state))

    @property
    def num_rows(self) -> int:
        """Rows of the input."""
        return int(self._states.size)

    def states(self) -> Iterator[RowState]:
        """Yield every row's state in input order."""
        return (RowState(int(state)) for state in self._states)

    def add_finished(self, finished: FinishedRow) -> None:
        """Append a row; it is durable after the next `sync`.

        Raises:
            StorageError: when it cannot be written; the row stays pending.
        """
        row, latent = finished.row, finished.hidden_state
        meta = {
            "task": row.task,
            "task_id": row.task_id,
            "plan": finished.plan,
            "num_steps": latent.shape[0],
            "prompt_tokens": finished.prompt_tokens,
            "completion_tokens": finished.completion_tokens,
            "finish_reason": finished.finish_reason,
            "token_ids": finished.token_ids,
            "seed": finished.seed,
        }
        if finished.matrices is None:
            body = [_bytes_of(np.ascontiguousarray(latent, dtype="<f4"))]
        else:
            meta["matrices"] = [[len(part.values), part.width] for part in finished.matrices]
            body = [_bytes_of(array) for part in finished.matrices for array in _arrays(part)]
        ref = self._log.append(Record(RecordKind.FINISHED, row.index, meta, body))
        self._settle(row.index, True, ref.offset)

    def add_failed(self, failed: FailedRow) -> None:
        """Append a row that has no latent; raises like `add_finished`."""
        meta = {"task_id": failed.task_id, "code": failed.code, "message": failed.message}
        ref = self._log.append(Record(RecordKind.FAILED, failed.index, meta))
        self._settle(failed.index, False, ref.offset)

    def add_suspect(self, index: int, suspicion: Suspicion) -> None:
        """Append the suspicion that a row ends replicas; raises like `add_finished`."""
        self._log.append(Record(RecordKind.SUSPECT, index, asdict(suspicion)))

    def add_elapsed(self, elapsed_s: float) -> None:
        """Append the seconds that passed since the last call."""
        self._log.append(Record(RecordKind.ELAPSED, 0, {"elapsed_s": elapsed_s}))
        self._elapsed_s += elapsed_s

    def sync(self) -> None:
        """Make everything appended before durable."""
        self._log.sync()

    def read(self, index: int) -> StoredRow:
        """Read a finished row without its latent."""
        meta = self._log_of(index).read_meta(int(self._offsets[index]))
        return StoredRow(
            text=RowText(task=meta["task"], task_id=meta["task_id"], plan=meta["plan"]),
            num_steps=meta["num_steps"],
            prompt_tokens=meta["prompt_tokens"],
            completion_tokens=meta["completion_tokens"],
            finish_reason=meta["finish_reason"],
            token_ids=meta.get("token_ids"),
            seed=meta.get("seed"),
            shapes=meta.get("matrices"),
        )

    def read_matrices_into(self, index: int, out: Sequence[npt.NDArray[Any]]) -> None:
        """Read a finished row's matrices.

        Args:
            index: of the row.
            out: for each matrix its values `[rows, stored width]`, then its scales `[rows]` if it
                has some; C order; filled.
        """
        self._log_of(index).read_body_into(int(self._offsets[index]), out)

    def failed_rows(self) -> Iterator[FailedRow]:
        """Yield the rows that failed, in input order."""
        for index in np.flatnonzero(self._states == RowState.FAILED):
            meta = self._log_of(int(index)).read_meta(int(self._offsets[index]))
            yield FailedRow(int(index), meta["task_id"], meta["code"], meta["message"])

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs:
            log.close()

    def _log_of(self, index: int) -> RecordLog:
        return self._logs[int(self._log_numbers[index])]

    def _recover_row(self, ref: RecordRef, log_number: int) -> None:
        is_finished = ref.kind == RecordKind.FINISHED
        # A row that failed may have finished later, on another rank.
        if is_finished or self._states[ref.row] != RowState.FINISHED:
            self._settle(ref.row, is_finished, ref.offset, log_number)

    def _settle(self, index: int, is_finished: bool, offset: int, log_number: int = 0) -> None:
        self._suspicions.pop(index, None)
        self._states[index] = RowState.FINISHED if is_finished else RowState.FAILED
        self._offsets[index] = offset
        self._log_numbers[index] = log_number


def _arrays(encoded: EncodedRows) -> list[npt.NDArray[Any]]:
    return [encoded.values] if encoded.scales is None else [encoded.values, encoded.scales]


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
