"""The input of a collection: one location, or several whose rows follow one another.

A row's index counts over all of them, so its seed does not depend on where one location ends.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentwire.split_files import why_no_split_name
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.locations import Place, is_url, local_path
from latentwire_batch.locations.urls import lacks_slash
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import Row, UnusableRow

_MAX_SHOWN_CHARS = 60
# Why the text is not taken for a path.
NOT_WHOLE = "no file or folder has the whole text as its name"


@dataclass(frozen=True)
class NamedInput:
    """One value of `--dataset`.

    Attributes:
        split: name of the split that it gives; None: not named.
        location: a path, or a dataset of the hub.
    """

    split: str | None
    location: str

    @classmethod
    def of(cls, text: str) -> NamedInput:
        """Read `NAME=LOCATION`, or a location alone, which may have `=` in it.

        Raises:
            UsageError: when the text is neither: nothing follows the name, or it cannot name a
                split and no such file is there.
        """
        name, sign, location = text.partition("=")
        # Not `Path.exists`, which raises an error for a text that is too long.
        if not sign or is_url(text) or lacks_slash(text) or os.path.exists(local_path(text) or ""):
            return cls(None, text)
        reason = why_no_split_name(name)
        if reason is not None:
            what = f"{_cut(name)!r} in front of = cannot name a split: {reason}"
            raise UsageError(
                f"--dataset: {what if name else 'nothing precedes the ='}; {NOT_WHOLE}"
            )
        if not location:
            raise UsageError(f"--dataset: nothing follows {name}=")
        return cls(name, location)


def named_inputs(texts: Sequence[str]) -> tuple[NamedInput, ...]:
    """Read the values of `--dataset`.

    Raises:
        UsageError: when a name is given twice, or only some inputs have one.
    """
    inputs = tuple(map(NamedInput.of, texts))
    names = Counter(one.split for one in inputs if one.split is not None)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError(f"--dataset: {twice[0]}= is given twice; a split has one input")
    if names and names.total() < len(inputs):
        raise UsageError("--dataset: name each input, like train=PATH, or none of them")
    return inputs


@dataclass(frozen=True)
class InputPart:
    """A file or folder, all of whose rows are of one split.

    Attributes:
        split: name of the split; None: the input names none.
        path: of the file or folder.
    """

    split: str | None
    path: Place


@dataclass(frozen=True)
class SplitRows:
    """A split, and the number of its rows.

    Attributes:
        name: of the split.
        num_rows: that follow those of the split before it.
    """

    name: str
    num_rows: int


@dataclass(frozen=True)
class NumberedRow:
    """A row, and which part of the input it is of."""

    part: int
    row: Row | UnusableRow


@dataclass(frozen=True)
class TaskInputs:
    """The rows of all parts, readable from the start any number of times.

    Attributes:
        parts: in order.
        sources: of the parts, in the same order.
        limit: maximum number of rows of all parts together; None: all.
    """

    parts: tuple[InputPart, ...]
    sources: tuple[TaskSource, ...]
    limit: int | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows that can be planned, in input order; raises like `numbered_rows`."""
        for numbered in self.numbered_rows():
            if isinstance(numbered.row, Row):
                yield numbered.row

    def unusable_rows(self) -> Iterator[UnusableRow]:
        """Yield the rows that are set aside, in input order; raises like `numbered_rows`."""
        for numbered in self.numbered_rows():
            if isinstance(numbered.row, UnusableRow):
                yield numbered.row

    def numbered_rows(self) -> Iterator[NumberedRow]:
        """Yield all rows in input order.

        Raises:
            InputError: as of `TaskSource`; with several parts, the text names the part.
        """
        start = 0
        for number, source in enumerate(self.sources):
            try:
                for row in source.all_rows(start):
                    yield NumberedRow(number, row)
                    start = row.index + 1
                    if start == self.limit:
                        return
            except InputError as error:
                raise InputError(f"{self._place(number)}{error}") from error

    def splits(self, num_rows: Sequence[int]) -> tuple[SplitRows, ...]:
        """Return the splits in order; empty where the parts name none.

        Args:
            num_rows: of each part, as far as it is read.
        """
        sums: dict[str, int] = {}
        for part, count in zip(self.parts, num_rows, strict=True):
            if part.split is not None:
                sums[part.split] = sums.get(part.split, 0) + count
        return tuple(SplitRows(name, count) for name, count in sums.items())

    def _place(self, number: int) -> str:
        if len(self.parts) == 1:
            return ""
        part = self.parts[number]
        return f"input {number + 1} ({part.split or part.path.name}): "


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
