"""Where a session's results go, and which rows it still has to send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from latentwire_batch.tasks.results import FailedRow, FinishedRow, RowState, Suspicion


class Store(Protocol):
    """Keeps the state and the result of every row.

    The `add_` methods and `sync` are called on worker threads, one `add_` at a time. They raise
    StorageError when the result cannot be kept.
    """

    @property
    def num_rows(self) -> int:
        """Rows of the input."""
        ...

    def is_pending(self, index: int) -> bool:
        """Whether a row still has to be sent."""
        ...

    def count(self, state: RowState) -> int:
        """Count the rows in one state."""
        ...

    def suspicion(self, index: int) -> Suspicion | None:
        """Return what an earlier run suspected of a pending row."""
        ...

    def add_all_finished(self, finished: Sequence[FinishedRow]) -> None:
        """Keep rows with their latents, all or none."""
        ...

    def add_failed(self, failed: FailedRow) -> None:
        """Keep the reason why a row has no latent."""
        ...

    def add_suspect(self, index: int, suspicion: Suspicion | None) -> None:
        """Keep the suspicion that a row ends replicas; None: drop it."""
        ...

    def add_elapsed(self, elapsed_s: float) -> None:
        """Keep the seconds that passed since the last call."""
        ...

    def sync(self) -> None:
        """Make everything added before durable."""
        ...
