"""Digests of a dataset's files: the manifest states them, and readers compare them.

CRC-32 finds what disks, networks and mistaken copies do to a file, and costs half of what a
cryptographic digest does. It is no protection against intent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from latentwire_batch.dataset.checksum import crc32
from latentwire_batch.locations import Place, RemotePath
from latentwire_batch.output.layout import FAILURES_NAME

FILES = "files"
"""The key of a manifest with the digests of the files of rows and failures, by name."""
_BLOCK_BYTES = 1 << 20
_CRC = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class FileDigest:
    """What is known of a file's content.

    Attributes:
        num_bytes: its size.
        crc32: CRC-32 of all bytes, as of `zlib.crc32`.
    """

    num_bytes: int
    crc32: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FileDigest:
        """Read what `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: when it is something else.
        """
        num_bytes, crc = value["bytes"], value["crc32"]
        if type(num_bytes) is not int or num_bytes < 0 or not _CRC.fullmatch(crc):
            raise ValueError("not a digest")
        return cls(num_bytes, int(crc, 16))

    def to_json(self) -> dict[str, Any]:
        """Return the digest as JSON values."""
        return {"bytes": self.num_bytes, "crc32": f"{self.crc32:08x}"}


def digest_of_file(path: Place) -> FileDigest:
    """Read a file and return its digest.

    Raises:
        OSError: when it cannot be read.
    """
    num_bytes, crc = 0, 0
    # A remote file reads ahead by itself.
    with path.open("rb") if isinstance(path, RemotePath) else path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            num_bytes, crc = num_bytes + len(block), crc32(block, crc)
    return FileDigest(num_bytes, crc)


def files_json(directory: Path, written: Mapping[Path, FileDigest]) -> dict[str, Any]:
    """Return what a manifest says about its files.

    Args:
        directory: of the dataset; its list of failures is read, if there is one.
        written: the files of rows.

    Raises:
        OSError: when the list of failures cannot be read.
    """
    digests = dict(written)
    failures = directory / FAILURES_NAME
    if failures.exists():
        digests[failures] = digest_of_file(failures)
    named = {path.relative_to(directory).as_posix(): file for path, file in digests.items()}
    return {name: named[name].to_json() for name in sorted(named)}


def stated_files(manifest: Mapping[str, Any]) -> dict[str, FileDigest]:
    """Return the digests that a manifest states; empty for one of an earlier version.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: when they are damaged.
    """
    stated = manifest.get(FILES) or {}
    found: dict[str, FileDigest] = {}
    for name, value in stated.items():
        path = PurePosixPath(name)
        # Somebody else may have written the manifest: it must not lead to other files.
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("not a file of the dataset")
        found[name] = FileDigest.from_json(value)
    return found


def size_problems(
    stated: Mapping[str, FileDigest], sizes: Mapping[str, int | None]
) -> Iterator[str]:
    """Name the files that are missing, or have another size than stated.

    Args:
        stated: by the manifest.
        sizes: of the files in bytes, by name; None or absent for one that does not exist.
    """
    for name, digest in stated.items():
        size = sizes.get(name)
        if size is None:
            yield f"{name} is missing"
        elif size != digest.num_bytes:
            yield f"{name} has {size} bytes, but its manifest.json says {digest.num_bytes}"


def content_problem(name: str, stated: FileDigest, found: FileDigest) -> str | None:
    """Say that a file is not the one that was stated; None when it is.

    Args:
        name: of the file, for the message.
        stated: by the manifest.
        found: by reading the file.
    """
    problem = next(size_problems({name: stated}, {name: found.num_bytes}), None)
    if problem is None and found != stated:
        problem = f"{name} has changed since it was written: its checksum differs"
    return problem


def merged_files(sources: Iterable[Mapping[Path, FileDigest]]) -> dict[Path, FileDigest]:
    """Join the files of several sinks."""
    return {path: digest for source in sources for path, digest in source.items()}
