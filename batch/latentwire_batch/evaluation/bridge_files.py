"""A bridge directory as this package sees it: what it states, and the hash of its content.

The map itself runs in the service. Values that other releases or strangers wrote are checked.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from latentwire.bridge_manifest import MANIFEST_NAME, TENSORS_NAME, BridgeManifest
from latentwire.validation import describe
from latentwire_batch.errors import UsageError

BUILTIN_NAMES = ("embeddings", "norm", "weights")
# The state that Interlat publishes: torch alone can read it.
_PUBLISHED_NAME = "hidden_mha_state.pt"
_MAX_MANIFEST_BYTES = 1 << 20
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 1 << 24
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class ChosenBridge:
    """The bridge that `--bridge` names.

    Attributes:
        name: under which a service lists it.
        directory: of its files; None for a built-in bridge.
        manifest: its `bridge.json`; None for a bridge without one.
        content_hash: of its files; None where only the service can compute it.
    """

    name: str
    directory: Path | None
    manifest: BridgeManifest | None
    content_hash: str | None


def choose_bridge(given: str) -> ChosenBridge:
    """Read the directory of a bridge, or recognize the name of a built-in one.

    Args:
        given: value of `--bridge`.

    Raises:
        UsageError: there is no such bridge, or its files cannot be used.
    """
    directory = Path(given)
    if not directory.is_dir():
        if given in BUILTIN_NAMES:
            return ChosenBridge(given, None, None, None)
        raise UsageError(
            f"--bridge: there is no such directory, and no built-in bridge of this name: "
            f"{', '.join(BUILTIN_NAMES)}"
        )
    name = directory.resolve().name
    if not (directory / MANIFEST_NAME).exists() and (directory / _PUBLISHED_NAME).is_file():
        return ChosenBridge(name, directory, None, None)
    try:
        manifest = _read_manifest(directory / MANIFEST_NAME)
        content_hash = manifest.hash_with(_read_tensors(directory / TENSORS_NAME))
    except OSError as error:
        what = MANIFEST_NAME if error.filename and MANIFEST_NAME in str(error.filename) else None
        raise UsageError(
            f"--bridge: {what or TENSORS_NAME} cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise UsageError(f"--bridge: {error}") from error
    return ChosenBridge(manifest.name or name, directory, manifest, content_hash)


def _read_manifest(path: Path) -> BridgeManifest:
    with path.open("rb") as file:
        content = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(content) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{MANIFEST_NAME} is larger than 1 MiB")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST_NAME} is not JSON") from error
    try:
        return BridgeManifest.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{MANIFEST_NAME}: {describe(error)}") from error


def _read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the tensors of a safetensors file as float32, by name."""
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        header = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        values = np.memmap(path, dtype=np.uint8, mode="r", offset=_LENGTH.size + length)
        return {name: _tensor(values, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{TENSORS_NAME} is damaged") from error


def _tensor(values: npt.NDArray[np.uint8], entry: dict[str, Any]) -> npt.NDArray[np.float32]:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(values) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor lies outside of the file")
    read = np.frombuffer(values[start:end].tobytes(), dtype=dtype)
    if entry["dtype"] == "BF16":
        # The upper half of a float32.
        read = (read.astype(np.uint32) << 16).view(np.float32)
    result: npt.NDArray[np.float32] = read.astype(np.float32).reshape(shape)
    return result
