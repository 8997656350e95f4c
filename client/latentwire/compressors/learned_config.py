"""`config` of the learned kinds in `compressor.json`: their sizes and choices."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from latentwire.bridge_manifest import Width
from latentwire.compressors.base import MAX_K

Reduction = Literal["first", "last", "stride", "mean-pool", "svd", "dct", "novel"]


Factor = Annotated[float, Field(ge=1, le=1024)]


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


class BridgeConfig(_Config):
    """The bridge that makes embeddings of rows, as in `bridge.json`."""

    kind: Literal["ridge", "mlp"]
    window: int = Field(ge=1, le=8)
    intermediate_size: Width | None = None

    @model_validator(mode="after")
    def _has_size(self) -> Self:
        if self.kind == "mlp" and self.intermediate_size is None:
            raise ValueError("intermediate_size is required by mlp")
        return self


class SelectorConfig(_Config):
    """selector.

    Attributes:
        bridge: the bridge.
        windows: by k, how many times k rows from the start on may be chosen.
        scorer_size: width of the scorer's hidden layer.
    """

    bridge: BridgeConfig
    windows: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}$")], Factor] = Field(min_length=1)
    scorer_size: Width


class MixerConfig(SelectorConfig):
    """resampler, trained through a receiver.

    Attributes:
        slots: most rows of a message.
        num_heads: of the attention; divides the receiver's width.
        intermediate_size: width of the hidden layer.
    """

    slots: int = Field(ge=1, le=MAX_K)
    num_heads: int = Field(ge=1, le=1024)
    intermediate_size: Width


class ResamplerConfig(_Config):
    """resampler, trained by reconstruction.

    Attributes:
        slots: most rows of a compressed latent.
        attention_size: width of queries, keys and values.
        num_heads: of each attention; divides attention_size.
        intermediate_size: width of the hidden layers.
    """

    slots: int = Field(ge=1, le=MAX_K)
    attention_size: Width
    num_heads: int = Field(ge=1, le=1024)
    intermediate_size: Width
