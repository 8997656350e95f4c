"""Whether the files of a dataset are still those that its manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire_batch.dataset.file_digests import content_problem, digest_of_file, stated_files
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place
from latentwire_batch.tasks.arrow_files import input_errors


def verify_files(
    root: Place, manifest: Mapping[str, Any] | None
) -> tuple[dict[str, str], list[str]]:
    """Read all files that a manifest names, and compare them with their digests.

    Args:
        root: the directory of the dataset.
        manifest: of the dataset; None: it has none.

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
