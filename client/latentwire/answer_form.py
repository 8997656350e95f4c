"""The latents of an answer: which a request wants in which form, and how they are named.

Mixins and values for the wire contract, the client and `latentwire plan`. This module must not know
HTTP, torch or FastAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from latentwire.conversation import Name
from latentwire.latent import HiddenState, ResponseModel
from latentwire.number_formats import NumberFormat
from latentwire.sampling import NumRows

# The same as in `latentwire.compressors`, which imports the wire contract.
Output = Literal["rows", "coefficients", "embeddings"]
COMPRESSED = "hidden_state_comp"

HIDDEN_STATE = "hidden_state"
"""Name of the full latent, as a field and as a tensor of a binary answer."""
ARRAY_PREFIX = COMPRESSED + "."
"""Begins the names of tensors that are further arrays of a compressor."""


def named_latents(
    hidden_state: HiddenState | None,
    hidden_state_comp: HiddenState | None,
    arrays: Mapping[str, HiddenState],
) -> dict[str, HiddenState]:
    """Return the latents that an answer has, by the names of their tensors, in its fields' order.

    Args:
        hidden_state: the full one; None: the answer leaves it out.
        hidden_state_comp: the compressed one; None: there is none.
        arrays: further arrays of the compressor.
    """
    named = {HIDDEN_STATE: hidden_state, COMPRESSED: hidden_state_comp}
    named |= {ARRAY_PREFIX + name: sent for name, sent in arrays.items()}
    return {name: sent for name, sent in named.items() if sent is not None}


class LatentFields(BaseModel):
    """What the answer holds of the latent, and in which number format."""

    k: NumRows | None = Field(
        default=None,
        description="Hidden rows to keep; absent: all; 0: text only. With a compressor: its number "
        "of rows.",
    )
    compressor: Name | None = Field(
        default=None,
        description="Also compress the latent with this compressor, one of /info; hidden_state "
        "then has all rows.",
    )
    return_hidden_state: bool = Field(
        default=True, description="False: the answer leaves the full latent out."
    )
    dtype: NumberFormat = Field(
        default="float32", description="Number format of the latents in the answer."
    )


class AppliedCompressor(ResponseModel):
    """The compressor that made an answer's `hidden_state_comp`."""

    name: str
    kind: str
    content_hash: str = Field(description="SHA-256 of what decides its values, k included.")
    parameters: dict[str, JsonValue] = Field(description="What decides its values, k included.")
    output: Output = Field(
        description="rows: hidden rows, which bridges read; coefficients: decompress them first; "
        "embeddings: input embeddings of one receiver."
    )


class CompressorInfo(ResponseModel):
    """A compressor that a service offers.

    One that takes any k has its parameters and its hash once k is known: in answers.
    """

    name: str
    kind: str | None = Field(
        default=None, description="How it compresses; null: a package's, not loaded before its use."
    )
    k: int | None = Field(default=None, description="Its largest k; null: any.")
    content_hash: str | None = Field(
        default=None, description="SHA-256 of what decides its values; null: k is one of them."
    )
    parameters: dict[str, JsonValue] | None = Field(
        default=None, description="What decides its values; null: k is one of them."
    )
    output: Output | None = Field(
        default=None, description="rows, coefficients or embeddings; null: known once loaded."
    )
    source_width: int | None = Field(
        default=None, description="Width of the rows that it reads; null: any."
    )
