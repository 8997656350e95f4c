"""Opening what an unfinished run has so far, as one rank sees it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from latentwire_batch.dataset.previous import finished_indices
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import Rank


def open_store(
    layout: OutputLayout,
    num_rows: int,
    rank: Rank,
    manifest: dict[str, Any] | None,
    reopens_failed: bool,
) -> RowStore:
    """Open the logs of all ranks, one's own for writing.

    Args:
        layout: of the output.
        num_rows: rows of the input.
        rank: whose rows stay pending.
        manifest: of an earlier, complete run whose rows are taken over; None for none.
        reopens_failed: whether rows that failed are to be asked for again.

    Raises:
        StorageError: when one cannot be read.
    """
    with ExitStack() as opened:
        logs = [RecordLog(layout.rank_log(rank.index))]
        opened.callback(logs[0].close)
        for path in layout.logs_beside(rank.index):
            logs.append(RecordLog(path, is_own=False))
            opened.callback(logs[-1].close)
        store = RowStore(logs[0], num_rows, logs[1:])
        if manifest is not None:
            store.keep(finished_indices(manifest, layout))
        store.recover()
        if reopens_failed:
            store.reopen_failed()
        store.leave_to_others(rank)
        opened.pop_all()
    return store
