"""Opening the logs of an unfinished run, as one rank sees them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from latentwire_batch.dataset.manifest import Manifest
from latentwire_batch.dataset.previous import finished_indices
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowLog, RowStore
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.shards.shard import ALL_ROWS, Shard
from latentwire_batch.tasks.results import FailedRow
from latentwire_batch.tasks.rows import UnusableRow

INVALID_ROW = "invalid-row"


def open_store(
    layout: OutputLayout,
    num_rows: int,
    rank: Rank,
    manifest: Manifest | None,
    reopens_failed: bool,
    shard: Shard = ALL_ROWS,
    segments: Segments | None = None,
) -> RowStore:
    """Open the logs of all ranks, this rank's own for writing.

    Args:
        layout: of the output.
        num_rows: rows of the input.
        rank: its rows stay pending.
        manifest: of a complete earlier run whose finished rows are kept; None for none.
        reopens_failed: whether rows that failed become pending again.
        shard: the rows of others are left out.
        segments: of replicas on other machines, which are read like the logs of other ranks.

    Raises:
        StorageError: when a log cannot be read.
    """
    with ExitStack() as opened:
        log = RecordLog(layout.rank_log(rank.index))
        opened.callback(log.close)
        others: list[RowLog] = []
        for path in layout.logs_of_others(rank.index):
            others.append(RecordLog(path, is_own=False))
            opened.callback(others[-1].close)
        elapsed_s = 0.0
        if segments is not None:
            others.append(segments.open())
            elapsed_s = segments.elapsed_s
        store = RowStore(log, num_rows, others, elapsed_s)
        store.restrict(shard)
        if manifest is not None:
            store.keep(finished_indices(manifest, layout))
        store.recover()
        if reopens_failed:
            store.reopen_failed()
        store.leave_to_others(rank, shard)
        opened.pop_all()
    return store


def set_unusable_aside(store: RowStore, rows: Iterable[UnusableRow]) -> int:
    """Record the pending rows that cannot be sent as failed.

    Returns:
        How many such rows the store has, those of earlier runs included.

    Raises:
        InputError: when the input cannot be read.
        StorageError: when the log cannot be written.
    """
    count = 0
    for row in rows:
        if store.is_pending(row.index):
            store.add_failed(FailedRow(row.index, row.task_id, INVALID_ROW, row.reason))
        count += store.has_failed(row.index)
    return count
