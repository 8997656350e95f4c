"""`compressor.json`: what a compressor directory states about its compressor.

The command that writes such directories and everything that reads them share this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from latentwire.bridge_manifest import HeldOut, Name, Prompt, Source, Target, Text, Width
from latentwire.compressors.base import MAX_K, Output, Rows, compressor_hash

MANIFEST_NAME = "compressor.json"
TENSORS_NAME = "compressor.safetensors"
FORMAT: Literal["latentwire-compressor"] = "latentwire-compressor"
VERSION: Literal[1] = 1

LearnedKind = Literal["pca", "autoencoder", "resampler", "selector"]


class UsedBridge(BaseModel):
    """The bridge through which a compressor was trained."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: Text
    content_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CompressorManifest(BaseModel):
    """The content of `compressor.json`."""

    # Fields of later versions are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    format: Literal["latentwire-compressor"] = FORMAT
    version: Literal[1] = VERSION
    kind: LearnedKind
    name: Name | None = None
    source: Source
    # Most rows that it returns; null: as many as the latent has.
    k: int | None = Field(default=None, ge=1, le=MAX_K)
    # Width D of the main array.
    dim: Width
    # Sizes and choices that depend on the kind; `learned` checks them.
    config: dict[str, JsonValue] = {}
    output: Output
    # The model whose input embeddings it makes, if the output is `embeddings`.
    receiver: Target | None = None
    bridge: UsedBridge | None = None
    prompt: Prompt | None = None
    held_out: HeldOut | None = None
    # By the name of a message and a set of tasks, in nats per token; or other numbers by name.
    scores: dict[str, dict[str, float]] = {}

    def parameters(self, k: int | None) -> dict[str, JsonValue]:
        """Return what decides the values of this compressor apart from its tensors.

        Args:
            k: most rows that it is made to return.
        """
        facts = self.model_dump(
            mode="json", include={"dim", "config", "source", "receiver", "output"}
        )
        return {"k": k, **facts}

    def hash_with(self, tensors: Mapping[str, Rows], k: int | None) -> str:
        """Return the content hash of the compressor.

        Args:
            tensors: all of it, by name.
            k: most rows that it is made to return.
        """
        return compressor_hash(self.kind, self.parameters(k), tensors)
