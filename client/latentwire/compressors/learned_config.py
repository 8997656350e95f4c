"""`config` of the learned kinds in `compressor.json`: their sizes and choices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from latentwire.bridge_manifest import Width
from latentwire.compressors.base import MAX_K

Reduction = Literal["first", "last", "stride", "mean-pool", "svd", "dct", "novel"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class RowConfig(_Config):
    """pca: what codes each row.

    Attributes:
        rows: the compressor that reduces a latent to k rows before; None: all rows are kept.
    """

    rows: Reduction | None = None


class AutoencoderConfig(RowConfig):
    """autoencoder: as pca.

    Attributes:
        intermediate_size: width of both hidden layers.
    """

    intermediate_size: Width


class ResamplerConfig(_Config):
    """resampler, trained by reconstruction.

    Attributes:
        slots: rows that it was trained to return.
        attention_size: width of queries, keys and values.
        num_heads: of each attention; divides attention_size.
        intermediate_size: width of the hidden layers.
    """

    slots: int = Field(ge=1, le=MAX_K)
    attention_size: Width
    num_heads: int = Field(ge=1, le=1024)
    intermediate_size: Width
