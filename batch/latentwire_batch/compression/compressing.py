"""First pass over a dataset: every latent to its compressed rows, on all cores."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from latentwire_batch.compression.row_log import CompressedRows, LostRow
from latentwire_batch.compression.source import SourceDataset
from latentwire_batch.compression.stored_form import (
    COMPRESSION_FAILED,
    LatentEncoder,
    Matrices,
)
from latentwire_batch.dataset.reader import StoredRow, stored_rows
from latentwire_batch.tasks.results import NotStorableError

# A power loss costs at most the rows of this time.
_SYNC_INTERVAL_S = 1.0
# Latents that wait for a thread are in memory.
_WAITING_PER_THREAD = 2


@dataclass(frozen=True)
class _Running:
    index: int
    task_id: str
    job: Future[Matrices]


class Compressing:
    """Compresses the rows that are not settled yet, and appends them in order.

    Args:
        source: the dataset.
        encoder: makes the stored matrices.
        rows: of the unfinished run.
        advance: called for every row that is settled.
    """

    def __init__(
        self,
        source: SourceDataset,
        encoder: LatentEncoder,
        rows: CompressedRows,
        advance: Callable[[], None],
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._rows = rows
        self._advance = advance
        self._running: deque[_Running] = deque()
        self._synced_s = time.monotonic()

    def run(self) -> None:
        """Compress all rows that are left.

        Raises:
            InputError: when the dataset cannot be read.
            StorageError: when the log cannot be written.
        """
        num_threads = os.cpu_count() or 1
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="compress")
        try:
            for index, row in enumerate(stored_rows(self._source.files)):
                if self._rows.is_settled(index):
                    continue
                job = pool.submit(self._encode, row)
                self._running.append(_Running(index, row.text.task_id, job))
                if len(self._running) >= _WAITING_PER_THREAD * num_threads:
                    self._settle_first()
            while self._running:
                self._settle_first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._rows.sync()

    def _encode(self, row: StoredRow) -> Matrices:
        width = self._encoder.width
        if row.is_ragged:
            raise NotStorableError(COMPRESSION_FAILED, "the rows of its latent differ in length")
        latent = row.latent if len(row.latent) else row.latent.reshape(0, width)
        if latent.shape[1] != width:
            raise NotStorableError(
                COMPRESSION_FAILED, f"its latent is {latent.shape[1]} wide, and the first {width}"
            )
        return self._encoder.encode(latent)

    def _settle_first(self) -> None:
        first = self._running.popleft()
        try:
            self._rows.add(first.index, first.job.result())
        except NotStorableError as error:
            self._rows.add_lost(LostRow(first.index, first.task_id, error.code, str(error)))
        self._advance()
        if time.monotonic() - self._synced_s >= _SYNC_INTERVAL_S:
            self._rows.sync()
            self._synced_s = time.monotonic()
