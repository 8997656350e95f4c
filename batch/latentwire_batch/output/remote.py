"""A folder behind a URL as the place of the finished files.

The run works in a directory of this machine. What another machine could need to know stands in the
folder: the manifest of a finished output, and the settings of an unfinished run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from latentwire.split_files import DATA_DIRECTORY, split_of
from latentwire_batch.console import Notify
from latentwire_batch.errors import RivalError, StorageError, storage_error
from latentwire_batch.locations import Folder
from latentwire_batch.locations.errors import output_errors
from latentwire_batch.output.discard import discard_partial
from latentwire_batch.output.durable import read_json, remove, sync_directory, write_json
from latentwire_batch.output.layout import (
    CARD_MARK,
    CARD_NAME,
    CLAIM_NAME,
    DATA_NAME,
    FINAL_NAMES,
    HF_DATASET_NAME,
    MANIFEST_NAME,
    OWNERS_NAME,
    PARTIAL_NAME,
    PARTS_NAME,
    OutputLayout,
)
from latentwire_batch.output.owner import Owner
from latentwire_batch.output.split_data import names_json, recorded_splits, stated_splits
from latentwire_batch.output.upload import Upload, is_left_over, size_text

_CHECKS_AT_A_TIME = 8
_DIGEST_CHARS = 12
# In the settings of an unfinished run: the name of the folder in `PARTS_NAME` that takes its rows.
_ROWS = "rows"


@dataclass(frozen=True)
class RemoteDestination:
    """A folder behind a URL: an implementation of `destination.Destination`.

    Attributes:
        layout: of the directory of this machine.
        folder: takes the finished files.
        notify: told about uploads.
    """

    layout: OutputLayout
    folder: Folder
    notify: Notify

    def owned(self) -> AbstractContextManager[None]:
        """Own the folder while the context lasts; see `Owner`."""
        return self._owner.held()

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the finished output; None when there is none."""
        return self._read_json(MANIFEST_NAME)

    def has_foreign_files(self, splits: Collection[str]) -> bool:
        """Whether files of a dataset are there, but no manifest and no unfinished run of them."""
        with _errors("cannot be read"):
            names = self.folder.sizes()
        return CLAIM_NAME not in names and any(
            is_final(name, splits) and name != CARD_NAME for name in names
        )

    def claimed(self) -> dict[str, Any] | None:
        """Return the settings of an unfinished run that another machine began."""
        return self._read_json(CLAIM_NAME)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Leave the settings in the folder, which also shows that it can be written to."""
        said = {**settings, _ROWS: self._rows_name(self._read(MANIFEST_NAME))}
        with _errors("cannot be written"):
            self.folder.write(CLAIM_NAME, json.dumps(said, ensure_ascii=False).encode())

    def folder_of_files(self) -> Folder | None:
        """Return the folder itself, which this run owns; None: each file would be a commit."""
        if self.folder.is_versioned:
            return None
        with _errors("cannot be read"):
            self._owner.check()
        return self.folder

    def parts(self) -> Folder | None:
        """Return where replicas put rows; None: each file there would be a commit.

        A run on top of a finished dataset has another folder than the one that made it, some of
        whose rows may be left over.
        """
        if self.folder.is_versioned:
            return None
        return self.folder.below(f"{PARTS_NAME}/{self._rows_name(self._read(MANIFEST_NAME))}")

    def has_rival(self) -> bool:
        """Whether another machine finished a dataset there and a run of this one is unfinished."""
        if not (self.layout.settings.exists() or self.layout.marker.exists()):
            return False
        return self._is_rival(self._read(MANIFEST_NAME))

    def yield_to_rival(self) -> None:
        """Remove the unfinished run from the work directory."""
        self.notify(
            "another run has finished the same dataset; its rows in the work directory are removed"
        )
        with _errors("cannot be cleared"):
            discard_partial(self.layout)

    def fetch_previous(self) -> None:
        """Copy what a retry needs of the finished output, the manifest last."""
        manifest = self._read(MANIFEST_NAME)
        if manifest is None:
            return
        directory = self.layout.finished
        with _errors("cannot be read"):
            remove(directory)
            splits = stated_splits(manifest)
            sizes = self.folder.sizes()
            names = [name for name in sizes if is_final(name, splits)]
            has_arrow = any(name.startswith(f"{HF_DATASET_NAME}/") for name in names)
            # One of the two forms of the rows is enough.
            left_out = {MANIFEST_NAME, CARD_NAME, *([DATA_NAME] if has_arrow else [])}
            wanted = [name for name in names if name not in left_out]
            total = size_text(sum(sizes[name] for name in wanted))
            self.notify(
                f"fetching {len(wanted)} files of the dataset ({total}) from {self.folder.shown}"
            )
            for name in wanted:
                self.folder.fetch(name, directory / name)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / MANIFEST_NAME).write_bytes(manifest)

    def install(self) -> None:
        """Replace the finished files by the staged ones, the manifest last.

        The marker is written first, and while it exists `finish_install` completes the upload.
        """
        try:
            sync_directory(self.layout.staging)
            write_json(self.layout.marker, {"upload": True})
        except OSError as error:
            raise storage_error("cannot be written", error) from error
        self.finish_install()

    def finish_install(self) -> None:
        """Complete an upload that was cut short; do nothing when there is none."""
        if read_json(self.layout.marker) is None:
            return
        manifest = (self.layout.staging / MANIFEST_NAME).read_bytes()
        found = self._read(MANIFEST_NAME)
        if found != manifest:
            if self._is_rival(found):
                raise RivalError
            with _errors("cannot be written"):
                self._upload(manifest)
        with _errors("cannot be written"):
            self._remove_claim(self.folder.sizes())
            discard_partial(self.layout)

    def discard(self, splits: Collection[str]) -> None:
        """Remove everything that a run wrote, the manifest first."""
        found = {*splits, *recorded_splits(self.layout), *stated_splits(self._read(MANIFEST_NAME))}
        with _errors("cannot be cleared"):
            # Without the manifest, nothing else says which files in `data/` are ours.
            write_json(self.layout.discarded, names_json(found))
            self.folder.remove([MANIFEST_NAME])
            names = self.folder.sizes()
            final = [name for name in names if is_final(name, found)]
            self.folder.remove(name for name in final if self._is_replaceable(name))
            self._remove_claim(names)
            discard_partial(self.layout)

    def has_left_over(self) -> bool:
        """Whether a run that wrote the manifest ended before it removed what only it needed."""
        return bool(self._left_over())

    def remove_left_over(self) -> None:
        """Remove what `has_left_over` found; an unfinished run on top of the dataset stays."""
        owners = f"{OWNERS_NAME}/"
        names = [name for name in self._left_over() if not name.startswith(owners)]
        with _errors("cannot be cleared"):
            self.folder.remove(names)

    def _left_over(self) -> list[str]:
        """Name what a run left that has finished the dataset, its settings last."""
        if self.folder.is_versioned:
            # The commit of the dataset removed it.
            return []
        manifest = self._read(MANIFEST_NAME)
        if manifest is None:
            return []
        rows_name = self._rows_name(manifest)
        with _errors("cannot be read"):
            partial = self.folder.below(PARTIAL_NAME).sizes()
        names = [f"{PARTIAL_NAME}/{name}" for name in partial]
        if CLAIM_NAME in names and self._claims(rows_name, manifest):
            return []
        own = f"{PARTS_NAME}/{rows_name}/"
        return sorted((name for name in names if not name.startswith(own)), key=_claim_last)

    def _claims(self, rows_name: str, manifest: bytes) -> bool:
        """Whether the settings in the folder may be of a run on top of a manifest.

        Args:
            rows_name: where that run's rows go.
            manifest: of the finished output.
        """
        try:
            claim = self.claimed()
        except StorageError:
            # Damaged settings are reported when somebody needs them.
            return True
        if claim is None or _ROWS in claim:
            return claim is not None and claim[_ROWS] == rows_name
        # Of an earlier version, which did not say it. Only rows that failed can be retried.
        return _has_failed_rows(manifest)

    def _upload(self, manifest: bytes) -> None:
        """Make the folder hold the staged files and no others of a dataset."""
        self._owner.check()
        if self.folder.is_versioned:
            self._commit(manifest)
            return
        # While files are replaced, none of them may count as finished.
        self.folder.remove([MANIFEST_NAME])
        names = self._staged()
        sent = [name for name in names if self._is_replaceable(name)]
        upload = Upload(self.folder, self.layout.staging, self.layout.upload_record, self.notify)
        # The card tells `load_dataset` of the files.
        upload.send(sent, self._owner.check_lately, last=(CARD_NAME,))
        self.folder.remove(self._stale(names, manifest, self.folder.sizes()))
        upload.verify(sent)
        self._owner.check()
        self.folder.write(MANIFEST_NAME, manifest)

    def _commit(self, manifest: bytes) -> None:
        """Do as `_upload` does by one commit, which also ends the claim of this run."""
        sizes = self.folder.sizes()
        names = self._staged()
        sent = [name for name in (*names, MANIFEST_NAME) if self._is_replaceable(name)]
        paths = {name: self.layout.staging / name for name in sent}
        total = size_text(sum(path.stat().st_size for path in paths.values()))
        self.notify(f"uploading {len(paths)} files ({total}) to {self.folder.shown} in one commit")
        stale = self._stale([*names, MANIFEST_NAME], manifest, sizes)
        self.folder.commit(paths, [*stale, *_claim_in(sizes)])

    def _staged(self) -> list[str]:
        """Name the staged files except the manifest, in order."""
        staging = self.layout.staging
        names = [
            path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()
        ]
        return sorted(name for name in names if name != MANIFEST_NAME)

    def _stale(
        self, names: Collection[str], manifest: bytes, sizes: Mapping[str, int]
    ) -> list[str]:
        """Name the files of an earlier dataset that are not in the new one.

        Args:
            names: of the new one's files.
            manifest: of the new one.
            sizes: of the files in the folder.
        """
        placed = (read_json(self.layout.placed) or {}).get("files", {})
        self._check_placed(placed, sizes)
        splits = stated_splits(manifest)
        stale = (
            name
            for name in sizes
            if name not in names
            and name not in placed
            and (is_final(name, splits) or is_left_over(name))
        )
        return [name for name in stale if self._is_replaceable(name)]

    @cached_property
    def _owner(self) -> Owner:
        return Owner(self.folder, self.layout.owner_token, self.notify)

    def _check_placed(self, placed: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Check that the files that a cluster wrote are still there as they were written.

        Args:
            placed: size and checksum of each; earlier versions noted the size alone.
            sizes: of the files in the folder.

        Raises:
            StorageError: when one is not; the next run writes it again.
        """

        def is_changed(name: str) -> bool:
            noted = placed[name]
            size, checksum = noted if isinstance(noted, list) else (noted, None)
            if sizes.get(name) != size:
                return True
            return checksum is not None and self.folder.checksum(name) != checksum

        with ThreadPoolExecutor(_CHECKS_AT_A_TIME, thread_name_prefix="check") as pool:
            has_changed = any(pool.map(is_changed, placed))
        if has_changed:
            remove(self.layout.marker)
            raise StorageError(
                "files that were written to the output have changed; rerun the same command to "
                "write them again"
            )

    @staticmethod
    def _rows_name(manifest: bytes | None) -> str:
        """Name the folder that takes the rows of a run on top of a manifest."""
        if manifest is None:
            return "first"
        return f"after-{hashlib.sha256(manifest).hexdigest()[:_DIGEST_CHARS]}"

    def _remove_claim(self, names: Iterable[str]) -> None:
        """Remove the rows and, last, the settings of an unfinished run from the folder."""
        self.folder.remove([*_claim_in(names), CLAIM_NAME])

    def _is_replaceable(self, name: str) -> bool:
        """Whether a file may be replaced or removed: a person's own README stays."""
        if name != CARD_NAME:
            return True
        found = self.folder.read(CARD_NAME)
        return found is None or CARD_MARK.encode() in found

    def _is_rival(self, manifest: bytes | None) -> bool:
        """Whether neither this run wrote a manifest nor one on top of which it works."""
        known = [self.layout.finished / MANIFEST_NAME]
        if self.layout.marker.exists():
            known.append(self.layout.staging / MANIFEST_NAME)
        if manifest is None:
            return False
        return all(not path.exists() or path.read_bytes() != manifest for path in known)

    def _read(self, name: str) -> bytes | None:
        with _errors("cannot be read"):
            return self.folder.read(name)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        data = self._read(name)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError as error:
            raise StorageError(f"the output's {name} is damaged: not JSON") from error
        if not isinstance(value, dict):
            raise StorageError(f"the output's {name} is damaged: not an object")
        return value


def is_final(name: str, splits: Collection[str] = ()) -> bool:
    """Whether a file of the folder is one of a finished output, or in one of its directories.

    Args:
        name: relative to the folder.
        splits: of the output, whose files are in `data/`.
    """
    directory, _, rest = name.partition("/")
    return directory in FINAL_NAMES or (directory == DATA_DIRECTORY and split_of(rest) in splits)


def _claim_in(names: Iterable[str]) -> list[str]:
    """Name what an unfinished run left in the folder: its rows and, last, its settings."""
    found = set(names)
    rows = sorted(name for name in found if name.startswith(f"{PARTS_NAME}/"))
    return [*rows, *({CLAIM_NAME} & found)]


def _claim_last(name: str) -> tuple[bool, str]:
    return name == CLAIM_NAME, name


def _has_failed_rows(manifest: bytes) -> bool:
    """Whether rows of a finished output failed, or its manifest is damaged."""
    try:
        return bool(json.loads(manifest)["counts"]["failed"])
    except (ValueError, LookupError, TypeError):
        return True


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        with output_errors(what):
            yield
    except OSError as error:
        raise storage_error(what, error) from error
