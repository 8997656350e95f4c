"""Bridges as `/info` lists them. This module must not know HTTP, torch or FastAPI."""

from __future__ import annotations

from pydantic import Field

from latentwire.latent import ResponseModel


class BridgeSource(ResponseModel):
    """The latents that a bridge was made for; null accepts any value."""

    model: str | None = None
    revision: str | None = None
    hidden_size: int | None = Field(default=None, description="Width of the rows.")
    layer: str | None = None
    normed: bool | None = None


class BridgePrompt(ResponseModel):
    """The user message that a bridge was fitted with: the latent stands between the two texts."""

    before: str
    after: str


class BridgeInfo(ResponseModel):
    """A bridge: it maps hidden rows of a sender to input embeddings of the served model."""

    name: str
    kind: str = Field(description="How it maps: embeddings, norm, weights, ridge, mlp or interlat.")
    source: BridgeSource
    content_hash: str = Field(description="SHA-256 of what decides its values.")
    is_step_bridge: bool = Field(
        description="Whether it maps each row by itself, so that it can feed latent steps."
    )
    prompt: BridgePrompt | None = None
