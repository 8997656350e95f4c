"""A bridge directory as this package sees it: what it states, and the hash of its content.

The map itself runs in the service. Values that other releases or strangers wrote are checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from latentwire.bridge_manifest import MANIFEST_NAME, TENSORS_NAME, BridgeManifest
from latentwire.tensor_file import read_tensors
from latentwire.validation import describe
from latentwire_batch.errors import UsageError

BUILTIN_NAMES = ("embeddings", "norm", "weights")
# The state that Interlat publishes: torch alone can read it.
_PUBLISHED_NAME = "hidden_mha_state.pt"
_MAX_MANIFEST_BYTES = 1 << 20


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
        if directory.exists():
            raise UsageError("--bridge: is a file, not the directory of a bridge")
        raise UsageError(
            f"--bridge: there is no such directory, and no built-in bridge of this name: "
            f"{', '.join(BUILTIN_NAMES)}"
        )
    name = directory.resolve().name
    if not (directory / MANIFEST_NAME).exists() and (directory / _PUBLISHED_NAME).is_file():
        return ChosenBridge(name, directory, None, None)
    try:
        manifest = _read_manifest(directory / MANIFEST_NAME)
        content_hash = manifest.hash_with(read_tensors(directory / TENSORS_NAME))
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
