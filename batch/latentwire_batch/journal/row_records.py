"""Rows as records of a log: which values stand in the JSON object, and which in the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import EncodedRows
from latentwire_batch.journal.record_log import Record
from latentwire_batch.tasks.results import (
    FailedRow,
    FinishedRow,
    RowText,
    Suspicion,
    UnconfirmedLoss,
)


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


def finished_record(finished: FinishedRow) -> Record:
    """Return the record of a row with its latent, of which it holds views."""
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
    return Record(RecordKind.FINISHED, row.index, meta, body)


def failed_record(failed: FailedRow) -> Record:
    """Return the record of a row that has no latent."""
    meta = {"task_id": failed.task_id, "code": failed.code, "message": failed.message}
    return Record(RecordKind.FAILED, failed.index, meta)


def suspect_record(index: int, suspicion: Suspicion | None) -> Record:
    """Return the record of the suspicion that a row ends replicas; None: it is dropped."""
    known = {} if suspicion is None else asdict(suspicion)
    meta = {name: value for name, value in known.items() if value is not None}
    return Record(RecordKind.SUSPECT, index, meta)


def elapsed_record(elapsed_s: float) -> Record:
    """Return the record of seconds that passed."""
    return Record(RecordKind.ELAPSED, 0, {"elapsed_s": elapsed_s})


def stored_row(meta: Mapping[str, Any]) -> StoredRow:
    """Return a finished row without its latent, from the JSON object of its record."""
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


def stored_suspicion(meta: Mapping[str, Any]) -> Suspicion | None:
    """Return a suspicion from the JSON object of its record; None: it was dropped."""
    if not meta:
        return None
    loss = meta.get("unconfirmed")
    return Suspicion(
        meta["group_size"],
        meta["num_lost"],
        meta["num_lost_alone"],
        None if loss is None else UnconfirmedLoss(**loss),
    )


def _arrays(encoded: EncodedRows) -> list[npt.NDArray[Any]]:
    return [encoded.values] if encoded.scales is None else [encoded.values, encoded.scales]


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
