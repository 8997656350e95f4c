"""`bridge.json`: what a bridge directory states about its bridge.

The file comes from a stranger: it is read with a bound on its size, and every value is checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire.validation import describe
from latentwire_service.engine.seams.bridge import BridgeError, BridgePrompt, BridgeSource

MANIFEST_NAME = "bridge.json"
TENSORS_NAME = "bridge.safetensors"
CARD_NAME = "README.md"
FORMAT: Literal["latentwire-bridge"] = "latentwire-bridge"
VERSION: Literal[1] = 1

_MAX_BYTES = 1 << 20

Kind = Literal["ridge", "mlp", "interlat"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(max_length=4096)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]


class _Part(BaseModel):
    # Fields of later versions are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Source(_Part):
    """The latents that the bridge reads; null accepts any value."""

    model: Text | None = None
    revision: Text | None = None
    hidden_size: Width
    layer: Text | None = "last"
    normed: bool | None = True


class Target(_Part):
    """The model whose input embeddings the bridge makes."""

    model: Text | None = None
    revision: Text | None = None
    hidden_size: Width


class Config(_Part):
    """Sizes of the map; which of them apply depends on the kind."""

    window: int = Field(default=2, ge=1, le=8)
    intermediate_size: Width | None = None
    num_heads: int = Field(default=8, ge=1, le=1024)


class Prompt(_Part):
    """The user message that the bridge was fitted with."""

    before: Text
    after: Text


class Manifest(_Part):
    """The content of `bridge.json`."""

    format: Literal["latentwire-bridge"] = FORMAT
    version: Literal[1] = VERSION
    kind: Kind
    name: Name | None = None
    source: Source
    receiver: Target
    config: Config = Config()
    prompt: Prompt | None = None
    # By the name of a message and a set of tasks, in nats per token.
    scores: dict[str, dict[str, float]] = {}

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
