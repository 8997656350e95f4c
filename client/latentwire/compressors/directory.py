"""A compressor directory: its manifest and its tensors, read without trust."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from latentwire.compressors.base import NAME_PATTERN, Compressor, CompressorError, Rows, checked_k
from latentwire.compressors.learned import learned_compressor
from latentwire.compressors.manifest import MANIFEST_NAME, TENSORS_NAME, CompressorManifest
from latentwire.compressors.training_free import RESERVED_NAMES
from latentwire.strict_json import load_json
from latentwire.tensor_file import read_tensors
from latentwire.validation import describe

_MAX_MANIFEST_BYTES = 1 << 20


def is_compressor_directory(directory: Path) -> bool:
    """Say whether this is a directory, whatever it holds."""
    try:
        return directory.is_dir()
    except (OSError, ValueError):
        # A name that no file can have.
        return False


def load_compressor(directory: Path, k: int | None = None) -> Compressor:
    """Load a compressor that `latentwire fit-compressor` wrote.

    Its name is the one in the manifest, or the directory's.

    Args:
        directory: of its files.
        k: most rows that it shall return; None: its own.

    Raises:
        CompressorError: the files cannot be read or used, or k exceeds its own.
    """
    manifest, tensors = read_compressor(directory)
    if k is not None:
        checked_k(k, manifest.name or manifest.kind)
    if k is not None and manifest.k is not None and k > manifest.k:
        raise CompressorError(
            f"must be at most {manifest.k}, for which the compressor was made, not {k}", "k"
        )
    return learned_compressor(manifest, tensors, k)


def read_compressor(directory: Path) -> tuple[CompressorManifest, dict[str, Rows]]:
    """Read the files of a compressor.

    Returns:
        The manifest, in which `name` is set; and the tensors by name, float32 and finite.

    Raises:
        CompressorError: a file cannot be read, is damaged or holds a wrong value.
    """
    manifest = _manifest(directory / MANIFEST_NAME)
    name = manifest.name or directory.resolve().name
    if name in RESERVED_NAMES or not re.fullmatch(NAME_PATTERN, name):
        raise CompressorError(
            f"{name[:64]!r} cannot be its name; write another `name` to {MANIFEST_NAME}",
            "compressor",
        )
    manifest = manifest.model_copy(update={"name": name})
    try:
        tensors = read_tensors(directory / TENSORS_NAME)
    except OSError as error:
        raise _unreadable(TENSORS_NAME, error) from error
    except ValueError as error:
        raise CompressorError(str(error), "compressor") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CompressorError(f"{TENSORS_NAME}: {name[:64]} is not finite", "compressor")
    return manifest, tensors


def _manifest(path: Path) -> CompressorManifest:
    try:
        # A pipe could block forever.
        if path.exists() and not path.is_file():
            raise CompressorError(f"{MANIFEST_NAME} is no file", "compressor")
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise _unreadable(MANIFEST_NAME, error) from error
    if len(content) > _MAX_MANIFEST_BYTES:
        raise CompressorError(f"{MANIFEST_NAME} is larger than 1 MiB", "compressor")
    try:
        value: Any = load_json(content.decode())
    except ValueError as error:
        raise CompressorError(f"{MANIFEST_NAME} is not JSON", "compressor") from error
    try:
        return CompressorManifest.model_validate(value)
    except ValidationError as error:
        raise CompressorError(f"{MANIFEST_NAME}: {describe(error)}", "compressor") from error


def _unreadable(name: str, error: OSError) -> CompressorError:
    return CompressorError(f"{name} cannot be read: {error.strerror}", "compressor")
