"""A folder as input: a saved dataset, one of its splits, or Parquet files that belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place, relative_name
from latentwire_batch.tasks.arrow_files import (
    NOT_SAVED,
    STATE_NAME,
    is_split_directory,
    split_names,
)

_MAX_NAMES = 5
_MAX_LISTED = 1000
_PARQUET = "*.parquet"
_NUMBER = re.compile(r"\d+")
_PART_OF = re.compile(r"-of-(\d+)\.parquet$")


def arrow_sources(directory: Place) -> list[Place]:
    """Find what a folder holds: directories written by `save_to_disk`, or Parquet files, in order.

    Raises:
        InputError: when it holds nothing that is read, or several datasets, naming what to pass.
    """
    if is_split_directory(directory):
        names = split_names(directory)
        if len(names) != 1:
            raise InputError(f"holds several splits; give the folder of one of: {_shown(names)}")
        return [directory / names[0]]
    if (directory / STATE_NAME).is_file():
        return [directory]
    files = [path for path in directory.glob(_PARQUET) if path.is_file()]
    return _parts(files) if files else _refuse(directory)


def _parts(files: list[Place]) -> list[Place]:
    """Return the parts of one dataset, whose names differ only in their numbers."""
    if len({_NUMBER.sub("#", path.name) for path in files}) > 1:
        names = sorted(path.name for path in files)
        raise InputError(f"holds several Parquet datasets; pass one of: {_shown(names)}")
    match = _PART_OF.search(files[0].name)
    if match is not None and len(files) != int(match[1]):
        raise InputError(f"holds {len(files)} of the {int(match[1])} parts of a Parquet dataset")
    return sorted(files, key=lambda path: [int(part) for part in _NUMBER.findall(path.name)])


def _refuse(directory: Place) -> list[Place]:
    below: Iterable[Place] = directory.rglob(_PARQUET)
    inner = {relative_name(path.parent, directory) for path in islice(below, _MAX_LISTED)}
    if inner:
        names = sorted(inner)
        raise InputError(f"holds Parquet files in folders; pass one of: {_shown(names)}")
    listed: Iterable[Place] = directory.iterdir()
    names = sorted(path.name for path in islice(listed, _MAX_LISTED) if path.is_file())
    advice = f"; pass one of its files: {_shown(names)}" if names else "; it holds no file"
    raise InputError(f"{NOT_SAVED}{advice}")


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
