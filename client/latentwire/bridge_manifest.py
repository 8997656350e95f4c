"""`bridge.json`: what a bridge directory states about its bridge, and the hash of its content.

The service and the batch tool read the same directories. This module must not know HTTP, torch or
FastAPI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

MANIFEST_NAME = "bridge.json"
TENSORS_NAME = "bridge.safetensors"
FORMAT: Literal["latentwire-bridge"] = "latentwire-bridge"
VERSION: Literal[1] = 1

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


class HeldOut(_Part):
    """Which tasks the bridge was not trained on: see `latentwire.held_out`."""

    seed: int
    fraction: float = Field(ge=0, le=1)


class BridgeManifest(_Part):
    """The content of `bridge.json`."""

    format: Literal["latentwire-bridge"] = FORMAT
    version: Literal[1] = VERSION
    kind: Kind
    name: Name | None = None
    source: Source
    receiver: Target
    config: Config = Config()
    prompt: Prompt | None = None
    held_out: HeldOut | None = None
    # By the name of a message and a set of tasks, in nats per token.
    scores: dict[str, dict[str, float]] = {}

    def hash_with(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> str:
        """Return the content hash of the bridge that has these tensors.

        Args:
            tensors: all of the bridge, by name.
        """
        facts = self.model_dump(include={"kind", "config", "source", "receiver"})
        return content_hash(facts, tensors)


def content_hash(facts: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """Return the SHA-256 of JSON values and tensors, in hexadecimal.

    Args:
        facts: what decides the values, apart from the tensors.
        tensors: float32, by name.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
