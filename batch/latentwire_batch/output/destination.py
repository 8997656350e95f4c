"""Where the finished files of a run go: a directory of this machine, or a folder behind a URL.

A run works in its layout's `.partial/` in both cases.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latentwire_batch.console import Notify
from latentwire_batch.locations import Folder, LocationError, Place
from latentwire_batch.locations.errors import output_error
from latentwire_batch.output.discard import discard_all
from latentwire_batch.output.durable import read_json
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.publish import finish_install, install
from latentwire_batch.output.remote import RemoteDestination
from latentwire_batch.output.split_data import split_data

_UNSAFE = re.compile(r"[^\w.-]+")
_MAX_NAME_CHARS = 40
_HASH_CHARS = 16


class Destination(Protocol):
    """Takes the finished files of a run. Its caller holds the lock of the layout.

    Every method raises StorageError or UsageError when the place cannot be read or written.
    """

    @property
    def layout(self) -> OutputLayout:
        """Of the directory in which the run works."""
        ...

    def owned(self) -> AbstractContextManager[None]:
        """Exclude runs of other machines while the context lasts, in which everything is written.

        Raises:
            OutputBusyError: when another run writes there.
        """
        ...

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the finished output; None when there is none."""
        ...

    def has_foreign_files(self, splits: Collection[str]) -> bool:
        """Whether files of a dataset are there, but no manifest and no unfinished run of them.

        Args:
            splits: of the run; empty for the classic layout.
        """
        ...

    def claimed(self) -> dict[str, Any] | None:
        """Return the settings of an unfinished run of another machine; None when there is none."""
        ...

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Leave the settings of this run where another machine finds them."""
        ...

    def folder_of_files(self) -> Folder | None:
        """Return the folder to which other machines can write final files; None: the layout's."""
        ...

    def parts(self) -> Folder | None:
        """Return where replicas on other machines put rows; None: they append to logs here."""
        ...

    def has_rival(self) -> bool:
        """Whether another machine finished a dataset there and a run of this one is unfinished."""
        ...

    def yield_to_rival(self) -> None:
        """Remove the unfinished run of this machine, whose rows the finished dataset has."""
        ...

    def fetch_previous(self) -> None:
        """Make the finished output readable at `layout.finished`, where a retry needs it."""
        ...

    def install(self) -> None:
        """Replace the finished files by the staged ones, the manifest last."""
        ...

    def finish_install(self) -> None:
        """Complete an installation that was cut short; do nothing when there is none."""
        ...

    def has_left_over(self) -> bool:
        """Whether a run that wrote the manifest ended before it removed what only it needed."""
        ...

    def remove_left_over(self) -> None:
        """Remove what `has_left_over` found; an unfinished run on top of the dataset stays."""
        ...

    def discard(self, splits: Collection[str]) -> None:
        """Remove everything that a run wrote, the manifest first.

        Args:
            splits: of the run; those that the manifest names are removed as well.
        """
        ...


@dataclass(frozen=True)
class LocalDestination:
    """A directory of this machine, in which the run also works."""

    layout: OutputLayout

    def owned(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: the lock excludes other runs."""
        return nullcontext()

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the finished output; None when there is none."""
        return read_json(self.layout.manifest)

    def has_foreign_files(self, splits: Collection[str]) -> bool:
        """Whether files of a dataset are there, but no manifest."""
        return self.layout.has_final_files() or bool(split_data(self.layout.root, splits))

    def claimed(self) -> dict[str, Any] | None:
        """Return None: all runs find the settings in the layout."""
        return None

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: all runs find the settings in the layout."""

    def folder_of_files(self) -> Folder | None:
        """Return None: other machines share the directory."""
        return None

    def parts(self) -> Folder | None:
        """Return None: what other machines need to see is in `.partial/`."""
        return None

    def has_rival(self) -> bool:
        """Return False: the lock excludes other runs."""
        return False

    def yield_to_rival(self) -> None:
        """Do nothing: there is none."""

    def fetch_previous(self) -> None:
        """Do nothing: the finished output is there."""

    def install(self) -> None:
        """Rename the staged files; see `publish.install`."""
        install(self.layout)

    def finish_install(self) -> None:
        """Complete the renames; see `publish.finish_install`."""
        finish_install(self.layout)

    def has_left_over(self) -> bool:
        """Return False: `finish_install` removes it."""
        return False

    def remove_left_over(self) -> None:
        """Do nothing: there is nothing."""

    def discard(self, splits: Collection[str]) -> None:
        """Remove everything; see `discard.discard_all`."""
        discard_all(self.layout, splits)


def destination_of(output_dir: Place, work_dir: Path | None, notify: Notify) -> Destination:
    """Return where the finished files of a run go. Nothing is read or written yet.

    Args:
        output_dir: as the user gave it.
        work_dir: parent of the directory in which a run with a URL works; None: in the user's
            cache. Each URL has a directory of its own there.
        notify: told about uploads.

    Raises:
        UsageError: when the URL cannot be opened.
    """
    if isinstance(output_dir, Path):
        return LocalDestination(OutputLayout(output_dir))
    folder = Folder(output_dir.url)
    try:
        _ = folder.filesystem
    except LocationError as error:
        raise output_error("cannot be opened", error) from error
    root = (work_dir or default_work_dir()) / _name_of(folder)
    return RemoteDestination(OutputLayout(root, is_remote=True), folder, notify)


def default_work_dir() -> Path:
    """Return the parent of the directories in which runs with URLs work."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latentwire" / "collect"


def _name_of(folder: Folder) -> str:
    name = _UNSAFE.sub("_", folder.name)[:_MAX_NAME_CHARS]
    scheme, mark, rest = folder.shown.partition("://")
    shown = f"{scheme.lower()}{mark}{rest}"
    return f"{name}-{hashlib.sha256(shown.encode()).hexdigest()[:_HASH_CHARS]}"
