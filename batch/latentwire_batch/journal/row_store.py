"""States and results of an unfinished run's rows, on disk.

In memory it keeps 11 bytes per input row, whatever the size of the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latentwire_batch.journal.record_log import RecordLog, RecordRef
from latentwire_batch.journal.row_records import (
    RecordKind,
    StoredRow,
    elapsed_record,
    failed_record,
    finished_record,
    stored_row,
    stored_suspicion,
    suspect_record,
)
from latentwire_batch.journal.segments.row_index import RowIndex
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.shards.shard import ALL_ROWS, Shard
from latentwire_batch.tasks.results import FailedRow, FinishedRow, RowState, Suspicion


class RowLog(Protocol):
    """A log that is only read. Methods raise StorageError when it cannot be read."""

    def recover(self) -> Iterator[RecordRef]:
        """Yield every whole record, from the first one on."""
        ...

    def will_read(self, offsets: npt.NDArray[np.int64]) -> None:
        """Hear in which order records are read from now on, which may make that faster."""
        ...

    def read_meta(self, offset: int) -> dict[str, Any]:
        """Read a record's JSON object."""
        ...

    def read_body_into(self, offset: int, out: Sequence[npt.NDArray[Any]]) -> None:
        """Read a record's body into arrays, one after the other."""
        ...

    def locate(self, rows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> RowIndex:
        """Return where records are.

        Args:
            rows: that they are about.
            offsets: of the records.
        """
        ...

    def close(self) -> None:
        """Read no more."""
        ...


class RowStore:
    """Finished and failed rows, appended to a log and found by index.

    Appending and syncing may be called from worker threads, one append at a time.

    Args:
        log: receives the records; the store closes it.
        num_rows: rows of the input.
        others: logs of other processes, which are only read; the store closes them.
        elapsed_s: seconds of earlier runs that do not stand in the log.
    """

    def __init__(
        self,
        log: RecordLog,
        num_rows: int,
        others: Sequence[RowLog] = (),
        elapsed_s: float = 0.0,
    ) -> None:
        self._log = log
        self._logs: tuple[RowLog, ...] = (log, *others)
        self._log_numbers = np.zeros(num_rows, dtype=np.uint16)
        self._states = np.full(num_rows, RowState.PENDING, dtype=np.uint8)
        self._offsets = np.zeros(num_rows, dtype=np.int64)
        self._elapsed_s = elapsed_s
        self._suspicions: dict[int, Suspicion] = {}

    @property
    def elapsed_s(self) -> float:
        """Recorded seconds of all runs."""
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
                    self._recover_suspicion(ref.row, log.read_meta(ref.offset))
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
        return self._states.item(index) == RowState.PENDING

    def has_failed(self, index: int) -> bool:
        """Whether a row is stored as one without a latent."""
        return self._states.item(index) == RowState.FAILED

    def pending(self) -> npt.NDArray[np.bool_]:
        """Return which rows still have to be sent, as `[num_rows]`."""
        pending: npt.NDArray[np.bool_] = self._states == RowState.PENDING
        return pending

    def suspicions(self) -> dict[int, Suspicion]:
        """Return what earlier runs suspected of rows, by row."""
        return dict(self._suspicions)

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
        self.add_all_finished([finished])

    def add_all_finished(self, finished: Sequence[FinishedRow]) -> None:
        """Append rows, all or none; raises like `add_finished`."""
        for ref in self._log.append_all([finished_record(each) for each in finished]):
            self._settle(ref.row, True, ref.offset)

    def add_failed(self, failed: FailedRow) -> None:
        """Append a row that has no latent; raises like `add_finished`."""
        ref = self._log.append(failed_record(failed))
        self._settle(failed.index, False, ref.offset)

    def add_suspect(self, index: int, suspicion: Suspicion | None) -> None:
        """Append the suspicion that a row ends replicas; None: it is no suspect any more.

        Raises like `add_finished`.
        """
        self._log.append(suspect_record(index, suspicion))

    def add_elapsed(self, elapsed_s: float) -> None:
        """Append the seconds that passed since the last call."""
        self._log.append(elapsed_record(elapsed_s))
        self._elapsed_s += elapsed_s

    def sync(self) -> None:
        """Make everything appended before durable."""
        self._log.sync()

    def will_read(self, state: RowState) -> None:
        """Announce that all rows in a state are read next, in input order."""
        rows = np.flatnonzero(self._states == state)
        numbers = self._log_numbers[rows]
        for number, log in enumerate(self._logs):
            log.will_read(self._offsets[rows[numbers == number]])

    def finished_index(self) -> RowIndex:
        """Return where the finished rows are, sorted by row."""
        rows = np.flatnonzero(self._states == RowState.FINISHED)
        numbers = self._log_numbers[rows]
        parts = [
            log.locate(own, self._offsets[own])
            for number, log in enumerate(self._logs)
            if (own := rows[numbers == number]).size
        ]
        joined = RowIndex.joined(parts)
        return joined.take(np.argsort(joined.rows))

    def read(self, index: int) -> StoredRow:
        """Read a finished row without its latent."""
        meta = self._log_of(index).read_meta(int(self._offsets[index]))
        return stored_row(meta)

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
        self.will_read(RowState.FAILED)
        for index in np.flatnonzero(self._states == RowState.FAILED):
            meta = self._log_of(int(index)).read_meta(int(self._offsets[index]))
            yield FailedRow(int(index), meta["task_id"], meta["code"], meta["message"])

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs:
            log.close()

    def _log_of(self, index: int) -> RowLog:
        return self._logs[int(self._log_numbers[index])]

    def _recover_suspicion(self, index: int, meta: Mapping[str, Any]) -> None:
        suspicion = stored_suspicion(meta)
        if suspicion is None:
            self._suspicions.pop(index, None)
        else:
            self._suspicions[index] = suspicion

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
