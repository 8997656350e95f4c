"""Compressors by name: the built-in ones, and those of other packages.

A package adds one through the entry-point group `latentwire.compressors`; the entry point is a
function `(k: int | None) -> Compressor`. The code of a package runs only when its compressor is
made. No entry point replaces a built-in compressor.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from latentwire.compressors.base import NAME_PATTERN, Compressor, CompressorError
from latentwire.compressors.directory import is_compressor_directory, load_compressor
from latentwire.compressors.foreign import foreign_compressor
from latentwire.compressors.training_free import RESERVED_NAMES, TRAINING_FREE, training_free

GROUP = "latentwire.compressors"


def compressor_names() -> list[str]:
    """Return the names of the built-in compressors and of those of installed packages, sorted."""
    return [*TRAINING_FREE, *sorted({point.name for point in _usable_entry_points()})]


def named_compressor(name: str, k: int | None = None) -> Compressor:
    """Make a compressor by its name; no file is opened, so the name may come from a request.

    Args:
        name: one of `compressor_names()`.
        k: most rows that it shall return; None: its own.

    Raises:
        CompressorError: no compressor has this name, the package that has it is broken, or k is
            missing or not possible for it.
    """
    if name in TRAINING_FREE:
        return training_free(name, k)
    found = [point for point in _usable_entry_points() if point.name == name]
    if not found:
        raise CompressorError(
            f"must be one of {', '.join(compressor_names())}, not {_shown(name)}", "compressor"
        )
    if len({point.value for point in found}) > 1:
        raise CompressorError(f"{len(found)} packages have a compressor {name}", "compressor")
    return foreign_compressor(found[0], k)


def make_compressor(given: str, k: int | None = None) -> Compressor:
    """Make a compressor by its name, or from its directory.

    This opens files that `given` names; use `named_compressor` for text from a request. A name
    wins over a directory; `./NAME` is the directory.

    Args:
        given: one of `compressor_names()`, or a directory written by `latentwire fit-compressor`.
        k: most rows that it shall return; None: its own.

    Raises:
        CompressorError: there is no such compressor, its files cannot be used, or k is missing or
            not possible for it.
    """
    # Looking for packages opens a file of every installed one, so it comes last.
    if given in TRAINING_FREE:
        return training_free(given, k)
    names = compressor_names()
    if given in names:
        return named_compressor(given, k)
    if given and is_compressor_directory(Path(given)):
        return load_compressor(Path(given), k)
    raise CompressorError(
        f"{_shown(given)} is neither a directory of a compressor nor one of {', '.join(names)}",
        "compressor",
    )


def _usable_entry_points() -> list[EntryPoint]:
    return [
        point
        for point in entry_points(group=GROUP)
        if point.name not in RESERVED_NAMES and re.fullmatch(NAME_PATTERN, point.name)
    ]


def _shown(name: str) -> str:
    return repr(name[:64])
