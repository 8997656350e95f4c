"""Parquet files that are named after their split: `data/<split>-00000-of-00003.parquet`.

So the Hugging Face hub names the files of a dataset. Knows the names alone, and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA_DIRECTORY = "data"
# As the library `datasets` names splits; "all" stands for all of them there.
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_RESERVED = "all"
# With the number of a file behind it, a longer name is more than a file system takes.
_MAX_NAME_CHARS = 200
_FILE_NAME = re.compile(r"(?P<split>\w+(?:\.\w+)*)-(\d{5,})-of-(\d{5,})\.parquet", re.ASCII)
_USUAL_ORDER = ("train", "validation", "test")


class SplitFilesError(Exception):
    """A file of a split is missing, or files of two datasets are mixed."""


def why_no_split_name(text: str) -> str | None:
    """Say why the library `datasets` takes no text like this as the name of one split.

    Returns:
        The reason; None for a name.
    """
    if text == _RESERVED:
        return f"{_RESERVED} stands for all splits together"
    if len(text) > _MAX_NAME_CHARS:
        return f"a name has at most {_MAX_NAME_CHARS} characters"
    if _SPLIT_NAME.fullmatch(text) is None:
        return "a name consists of ASCII letters, digits, _ and single dots"
    return None


def split_file_name(split: str, index: int, count: int) -> str:
    """Name one file of a split.

    Args:
        split: its name.
        index: of the file, counted from 0.
        count: of the split's files.
    """
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Attributes:
        name: of the split.
        paths: in the order of its rows.
    """

    name: str
    paths: tuple[Path, ...]


def split_of(name: str) -> str | None:
    """Return the split of which a file is, by its name; None for a file with another name."""
    match = _FILE_NAME.fullmatch(name)
    return None if match is None else match["split"]


def find_splits(directory: Path, order: Iterable[str] = ()) -> list[SplitFiles]:
    """Find the files of all splits in a directory.

    Args:
        directory: that holds them.
        order: names of splits that come first, in this order.

    Returns:
        The splits in order; empty when there are none.

    Raises:
        SplitFilesError: when a file of a split is missing, or files of two datasets are mixed.
    """
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, set[int]] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _FILE_NAME.fullmatch(path.name)
        if match is not None and path.is_file():
            found.setdefault(match["split"], {})[int(match[2])] = path
            counts.setdefault(match["split"], set()).add(int(match[3]))
    first = {name: place for place, name in enumerate(dict.fromkeys((*order, *_USUAL_ORDER)))}
    for name, files in found.items():
        if counts[name] != {len(files)} or set(files) != set(range(len(files))):
            total = " and ".join(map(str, sorted(counts[name])))
            raise SplitFilesError(f"holds {len(files)} of the {total} files of the split {name}")
    return [
        SplitFiles(name, tuple(path for _, path in sorted(found[name].items())))
        for name in sorted(found, key=lambda name: (first.get(name, len(first)), name))
    ]
