"""What is suspected of rows, read back from the log by the next run."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire_batch.journal.record_log import Record, RecordLog
from latentwire_batch.journal.row_records import RecordKind
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.ray.session import _left
from latentwire_batch.tasks.results import FailedRow, Suspicion, UnconfirmedLoss

LOSS = UnconfirmedLoss(num_together=4, sent_at_s=1_800_000_000.25, replica="0123456789abcdef")
CONFIRMED = Suspicion(2, 3, 1)
OPEN = Suspicion(2, 3, 1, LOSS)
FIRST = Suspicion(4, unconfirmed=LOSS)
NUM_ROWS = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.log"


def opened(path: Path) -> RowStore:
    store = RowStore(RecordLog(path), NUM_ROWS)
    store.recover()
    return store


@pytest.mark.parametrize(
    "suspicions",
    [[CONFIRMED], [OPEN], [FIRST], [FIRST, CONFIRMED], [CONFIRMED, OPEN], [OPEN, None]],
    ids=str,
)
def test_the_last_suspicion_of_a_row_holds(suspicions: list[Suspicion | None], path: Path) -> None:
    store = opened(path)
    for suspicion in suspicions:
        store.add_suspect(1, suspicion)
    store.close()
    again = opened(path)
    assert [again.suspicion(index) for index in range(NUM_ROWS)] == [None, suspicions[-1], None]
    again.close()


def test_a_record_of_an_earlier_version_is_a_confirmed_suspicion(path: Path) -> None:
    log = RecordLog(path)
    list(log.recover())
    meta = {"group_size": 2, "num_lost": 3, "num_lost_alone": 1}
    log.append(Record(RecordKind.SUSPECT, 1, meta))
    log.close()
    store = opened(path)
    assert store.suspicion(1) == CONFIRMED
    store.close()


def test_a_row_that_has_failed_is_no_suspect_when_it_is_tried_again(path: Path) -> None:
    store = opened(path)
    store.add_suspect(1, OPEN)
    store.add_failed(FailedRow(1, "t1", "timeout", ""))
    store.close()
    again = opened(path)
    again.reopen_failed()
    assert again.is_pending(1)
    assert again.suspicion(1) is None
    again.close()


def test_a_cluster_counts_no_loss_that_is_not_confirmed(path: Path) -> None:
    """None of its replicas can tell whether a replica at an address has ended."""
    store = opened(path)
    for index, suspicion in enumerate((OPEN, FIRST, CONFIRMED)):
        store.add_suspect(index, suspicion)
    store.close()
    again = opened(path)
    pending, suspicions = _left(again)
    assert pending.all()
    assert suspicions == {0: CONFIRMED, 2: CONFIRMED}
    again.close()
