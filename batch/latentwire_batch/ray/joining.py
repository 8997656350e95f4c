"""The final files of the hub layout, each written by one task of the Ray cluster.

The driver only says which rows are in which file, and notes the files that are whole: after an
interruption these are not written again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.split_files import DATA_DIRECTORY, split_file_name
from latentwire_batch.assembly import Totals, write_failures
from latentwire_batch.dataset.file_digests import FileDigest, files_json
from latentwire_batch.errors import BatchError, LocationError, StorageError, storage_error
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.segments.row_index import RowIndex
from latentwire_batch.locations import Folder
from latentwire_batch.output.durable import remove, write_json
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ray.cluster import attached, is_local
from latentwire_batch.ray.final_file import FinalFile, FinalForm, WrittenFile, write_final_file
from latentwire_batch.run import Run
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.results import RowState

# Of a task whose node or process is lost.
_MAX_RETRIES = 5


def joins_on_cluster(run: Run, store: RowStore) -> bool:
    """Whether the cluster writes the final files.

    Only the driver can read the rows of a finished dataset to which a run adds others, and where
    the cluster is this machine, the threads of this process are as fast.
    """
    return (
        run.settings.on == "ray"
        and bool(run.splits)
        and not is_local(run.settings)
        and store.count(RowState.FINISHED) > 0
        and not store.count(RowState.KEPT)
        and run.destination.manifest() is None
        and _is_reachable(run, store)
    )


def _is_reachable(run: Run, store: RowStore) -> bool:
    """Whether all nodes can read the rows; for a URL, those of earlier runs may be here."""
    parts = run.destination.parts()
    return parts is None or all(file.folder == parts for file in store.finished_index().files)


def join_on_cluster(run: Run, store: RowStore, form: FinalForm, totals: Totals) -> dict[str, Any]:
    """Write all final files but the card and the manifest.

    Args:
        run: whose rows are settled; `joins_on_cluster` holds.
        store: of the rows.
        form: of the files.
        totals: receives the sums of all rows.

    Returns:
        What the manifest says about the files.

    Raises:
        BatchError: when a file cannot be written; files that are whole are kept.
    """
    staging = run.layout.staging
    folder = run.destination.folder_of_files()
    target = staging.absolute() if folder is None else folder
    files = planned_files(store.finished_index(), run.splits, form, target)
    with _storage_errors():
        _prepare(staging, {} if folder is not None else {file.name: file for file in files})
        record = _Record(run.layout.joined, target)
        left = [file for file in files if not record.holds(file)]
        kept = f"; {len(files) - len(left)} are there already" if len(left) < len(files) else ""
        run.console.say(f"writing {_count(len(left))} on the Ray cluster{kept}")
        if left:
            with attached(run.settings) as ray:
                for file, written in _written(ray, left):
                    record.add(file, _looked_at(written, folder))
        whole = [record.of(file) for file in files]
        for written in whole:
            totals.add(written.totals)
        totals.failed = write_failures(staging, store.failed_rows())
        if folder is not None:
            placed = {each.name: [each.digest.num_bytes, each.checksum] for each in whole}
            write_json(run.layout.placed, {"files": placed})
        return files_json(staging, {staging / each.name: each.digest for each in whole})


def planned_files(
    index: RowIndex, splits: Sequence[SplitRows], form: FinalForm, target: Path | Folder
) -> list[FinalFile]:
    """Divide the rows of each split into files.

    Args:
        index: of the finished rows, sorted by row.
        splits: with the rows of the input, in order.
        form: of the files.
        target: where they go.
    """
    files, start = [], 0
    for split in splits:
        rows = index.of_rows(start, start + split.num_rows)
        start += split.num_rows
        parts = list(_parts(rows.lengths, form.max_bytes))
        for number, (first, last) in enumerate(parts):
            name = f"{DATA_DIRECTORY}/{split_file_name(split.name, number, len(parts))}"
            files.append(FinalFile(name, rows.take(np.arange(first, last)), form, target))
    return files


def _parts(lengths: npt.NDArray[np.int64], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the first record of each file and the one after its last."""
    ends = np.cumsum(lengths)
    first = 0
    while first < ends.size:
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + max_bytes, side="right"))
        last = max(last, first + 1)
        yield first, last
        first = last


def _written(ray: Any, files: Sequence[FinalFile]) -> Iterator[tuple[FinalFile, WrittenFile]]:
    """Yield files when they are whole."""
    # On all nodes, because each has its own connection to the store.
    write = ray.remote(write_final_file).options(
        num_cpus=1, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD"
    )
    waiting = {write.remote(file): file for file in files}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        try:
            written: WrittenFile = ray.get(done)
        except ray.exceptions.RayError as error:
            # Of a task that failed, and not of Ray itself.
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, BatchError):
                raise cause from error
            raise StorageError(
                f"Ray cannot write the files ({type(cause).__name__}); rows and whole files are "
                "kept, rerun the same command to resume"
            ) from error
        yield waiting.pop(done), written


def _looked_at(written: WrittenFile, folder: Folder | None) -> WrittenFile:
    """Add the checksum as this machine reads it: other versions of a library may read another."""
    if folder is None:
        return written
    return replace(written, checksum=folder.checksum(written.name))


class _Record:
    """Which files are whole, durably.

    Args:
        path: of the record.
        target: that holds the files.
    """

    def __init__(self, path: Path, target: Path | Folder) -> None:
        self._path = path
        self._target = target
        self._known: dict[str, WrittenFile] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                value = json.loads(line)
                key: str = value.pop("key")
                self._known[key] = _written_file(value)
            except (ValueError, TypeError, KeyError, AttributeError):
                # The end of a write that was cut off; its file is written again.
                continue

    def holds(self, file: FinalFile) -> bool:
        """Whether a file is whole, and still there as it was written."""
        known = self._known.get(file.key)
        if known is None or known.name != file.name:
            return False
        if isinstance(self._target, Path):
            path = self._target / file.name
            return path.is_file() and path.stat().st_size == known.digest.num_bytes
        is_there = self._target.size(file.name) == known.digest.num_bytes
        return is_there and self._target.checksum(file.name) == known.checksum

    def of(self, file: FinalFile) -> WrittenFile:
        """Return what is known of a whole file."""
        return self._known[file.key]

    def add(self, file: FinalFile, written: WrittenFile) -> None:
        """Note that a file is whole."""
        self._known[file.key] = written
        # The line feed in front ends a line whose writing was cut off.
        line = "\n" + json.dumps({"key": file.key, **_json(written)}, ensure_ascii=False) + "\n"
        with self._path.open("a", encoding="utf-8") as record:
            record.write(line)
            record.flush()
            os.fsync(record.fileno())


def _json(written: WrittenFile) -> dict[str, Any]:
    reasons = dict(written.totals.finish_reasons)
    totals = {**vars(written.totals), "finish_reasons": reasons}
    return {**vars(written), "digest": written.digest.to_json(), "totals": totals}


def _written_file(value: dict[str, Any]) -> WrittenFile:
    totals = Totals(**value.pop("totals"))
    totals.finish_reasons = Counter(totals.finish_reasons)
    digest = FileDigest.from_json(value.pop("digest"))
    return WrittenFile(totals=totals, digest=digest, **value)


def _prepare(staging: Path, files: Mapping[str, FinalFile]) -> None:
    """Make the directory of the final files; remove what is in it from another plan."""
    (staging / DATA_DIRECTORY).mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        if path.name != DATA_DIRECTORY:
            remove(path)
    for path in (staging / DATA_DIRECTORY).iterdir():
        if f"{DATA_DIRECTORY}/{path.name}" not in files:
            remove(path)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except LocationError as error:
        raise storage_error("cannot be read", error) from error
    except OSError as error:
        raise storage_error("cannot be written", error) from error


def _count(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def forget_join(layout: OutputLayout) -> None:
    """Forget files that a cluster wrote: this process writes all."""
    remove(layout.joined)
    remove(layout.placed)
