"""Files with weights of a local model: which there are, and whether each is whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentwire_service.engine.errors import DamagedModelError, ModelNotFoundError

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 2**28
_SHOWN_NAMES = 3


def find_weights(folder: Path) -> Path | None:
    """Return the file that transformers begins with; None when there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def check_weights(first: Path, failure: str) -> None:
    """Refuse weights of which a file is missing, cut short or not downloaded.

    Args:
        first: the file that `find_weights` found.
        failure: the start of messages.

    Raises:
        ModelNotFoundError: a file is missing, or a pointer stands for it.
        DamagedModelError: a file is cut short, or no safetensors file.
    """
    files = _files_of(first, failure)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        verb = "is" if len(missing) == 1 else "are"
        raise ModelNotFoundError(
            f"{failure}: {', '.join(missing[:_SHOWN_NAMES])}{more} {verb} missing; {first.name} "
            f"names {len(files)} files"
        )
    for file in files:
        if is_lfs_pointer(file):
            raise ModelNotFoundError(
                f"{failure}: {file.name} is a pointer of Git LFS; `git lfs pull` downloads the "
                "weights"
            )
        if file.suffix == ".safetensors":
            _check_size(file, failure)


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file only says where Git LFS keeps its content."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def names_in_files(folder: Path) -> set[str]:
    """Return the names in the safetensors files of a directory, as far as they can be read."""
    names: set[str] = set()
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            header, _ = _read_header(file)
        except (OSError, ValueError, struct.error):
            continue
        names |= header.keys() - {"__metadata__"}
    return names


def _files_of(first: Path, failure: str) -> Sequence[Path]:
    if not first.name.endswith(".index.json"):
        return [first]
    try:
        names = set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values())
        return [first.parent / str(name) for name in sorted(names)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedModelError(
            f"{failure}: {first.name} is not an index of weights (JSON with `weight_map`)"
        ) from error


def _check_size(file: Path, failure: str) -> None:
    try:
        header, start = _read_header(file)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        missing = start + max(ends, default=0) - file.stat().st_size
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise DamagedModelError(
            f"{failure}: {file.name} is cut short or not a safetensors file; download it again"
        ) from error
    if missing > 0:
        raise DamagedModelError(
            f"{failure}: {file.name} is cut short by {missing:,} bytes; download it again"
        )


def _read_header(file: Path) -> tuple[Mapping[str, Any], int]:
    """Return the entries of a safetensors file, and the offset of its data."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            raise ValueError("the header is longer than the file")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    return header, 8 + length
