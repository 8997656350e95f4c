"""Settings of `latentwire fit-compressor`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_FIT_COMPRESSOR_`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentwire.compressors.base import MAX_K
from latentwire.compressors.learned_config import Reduction
from latentwire_service.fitting.settings import DatasetSettings, ReceiverSettings, fit_config


class CompressorSettings(ReceiverSettings, DatasetSettings):
    """One fit. The fields of the last base come first."""

    model_config = fit_config("LATENTWIRE_FIT_COMPRESSOR_")

    kind: Literal["pca"] = Field(
        default="pca",
        description="pca: the directions in which rows vary most, in closed form.",
    )
    k: int | None = Field(
        default=None,
        ge=1,
        le=MAX_K,
        description="Rows of a compressed latent; absent: as many as the latent has.",
    )
    dim: int = Field(default=256, ge=1, description="Width of a compressed row.")
    rows: Reduction | None = Field(
        default=None,
        description="How a latent is reduced to --k rows before each is coded; absent: mean-pool.",
    )
    store_dtype: Literal["fp16", "fp32"] = Field(
        default="fp32", description="Dtype of the stored tensors."
    )
