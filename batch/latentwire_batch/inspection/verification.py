"""Whether the files of a dataset are still those that its manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire_batch.dataset.file_digests import (
    FileDigest,
    content_problem,
    digest_of_file,
    stated_files,
)
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place, relative_name
from latentwire_batch.tasks.arrow_files import input_errors


def verify_files(
    root: Place, manifest: Mapping[str, Any] | None, given: Place | None = None
) -> tuple[dict[str, str], list[str]]:
    """Read files that a manifest names, and compare them with their digests.

    Args:
        root: the directory of the dataset.
        manifest: of the dataset; None: it has none.
        given: a file or folder in the directory, which alone is compared; None: all files.

    Returns:
        What is known of the files, and the problems.

    Raises:
        InputError: when the manifest states no digests, or a file cannot be read.
    """
    try:
        stated = stated_files(manifest or {})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError("its manifest.json is damaged") from error
    if not stated:
        raise InputError(
            "has no manifest.json with checksums, which --verify compares; datasets of earlier "
            "versions have none"
        )
    if given is not None and given != root:
        stated = _within(stated, relative_name(_absolute(given), _absolute(root)))
    problems: list[str] = []
    for name, digest in stated.items():
        with input_errors():
            path = root / name
            problem: str | None = f"{name} is missing"
            if path.is_file():
                problem = content_problem(name, digest, digest_of_file(path))
        if problem is not None:
            problems.append(problem)
    count = "1 file" if len(stated) == 1 else f"{len(stated)} files"
    known = f"{count} as written" if not problems else f"{len(problems)} of {count} differ"
    return {"checksums": known}, problems


def _within(stated: Mapping[str, FileDigest], place: str) -> dict[str, FileDigest]:
    """Return the digests of a file, or of those in a folder."""
    found = {
        name: digest
        for name, digest in stated.items()
        if name == place or name.startswith(f"{place}/")
    }
    if not found:
        raise InputError(f"the manifest.json of its dataset does not name {place}")
    return found


def _absolute(place: Place) -> Place:
    return place.absolute() if isinstance(place, Path) else place
