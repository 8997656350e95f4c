"""`bridge.json`: what a bridge directory states about its bridge.

The file comes from a stranger: it is read with a bound on its size, and every value is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from latentwire.bridge_manifest import FORMAT as FORMAT
from latentwire.bridge_manifest import MANIFEST_NAME as MANIFEST_NAME
from latentwire.bridge_manifest import TENSORS_NAME as TENSORS_NAME
from latentwire.bridge_manifest import VERSION as VERSION
from latentwire.bridge_manifest import BridgeManifest
from latentwire.bridge_manifest import Config as Config
from latentwire.bridge_manifest import HeldOut as HeldOut
from latentwire.bridge_manifest import Kind as Kind
from latentwire.bridge_manifest import Prompt as Prompt
from latentwire.bridge_manifest import Source as Source
from latentwire.bridge_manifest import Target as Target
from latentwire.validation import describe
from latentwire_service.engine.seams.bridge import BridgeError, BridgePrompt, BridgeSource

CARD_NAME = "README.md"

_MAX_BYTES = 1 << 20


class Manifest(BridgeManifest):
    """The content of `bridge.json`, in the values of the engine's seam."""

    @property
    def bridge_source(self) -> BridgeSource:
        """The source as the seam's value."""
        return BridgeSource(**self.source.model_dump())

    @property
    def bridge_prompt(self) -> BridgePrompt | None:
        """The prompt as the seam's value."""
        return None if self.prompt is None else BridgePrompt(self.prompt.before, self.prompt.after)


def read_manifest(directory: Path) -> Manifest:
    """Read and check `bridge.json`.

    Raises:
        BridgeError: it is missing, too large, no JSON object, or a value is wrong.
    """
    path = directory / MANIFEST_NAME
    # Opening a pipe would wait for its writer.
    if path.exists() and not path.is_file():
        raise BridgeError(f"{MANIFEST_NAME} is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise BridgeError(
            f"there is no {MANIFEST_NAME}", "latentwire fit-bridge makes a directory that has one."
        ) from error
    except OSError as error:
        raise BridgeError(f"{MANIFEST_NAME} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise BridgeError(f"{MANIFEST_NAME} is larger than 1 MiB")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BridgeError(f"{MANIFEST_NAME} is not JSON") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BridgeError(f'{MANIFEST_NAME} does not say "format": "{FORMAT}"')
    if value.get("version") != VERSION:
        raise BridgeError(
            f"{MANIFEST_NAME} has version {json.dumps(value.get('version'))[:40]}",
            f"This release of latentwire reads version {VERSION}.",
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise BridgeError(f"{MANIFEST_NAME}: {describe(error)}") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `bridge.json`.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
