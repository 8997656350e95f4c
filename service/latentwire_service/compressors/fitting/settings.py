"""Settings of `latentwire fit-compressor`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_FIT_COMPRESSOR_`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from latentwire.compressors.base import MAX_K
from latentwire.compressors.learned_config import Reduction
from latentwire_service.fitting.settings import DatasetSettings, ReceiverSettings, fit_config


class CompressorSettings(ReceiverSettings, DatasetSettings):
    """One fit. The fields of the last base come first."""

    model_config = fit_config("LATENTWIRE_FIT_COMPRESSOR_")

    kind: Literal["pca", "autoencoder", "resampler", "selector"] = Field(
        default="pca",
        description="pca: the directions in which rows vary most, in closed form. autoencoder: an "
        "MLP per row, trained. resampler: k rows that attend to all rows, trained by "
        "reconstruction; with --bridge, trained through the receiver. selector: the rows from "
        "which the receiver of --bridge gains most.",
    )
    bridge: Path | None = Field(
        default=None,
        description="selector, resampler: directory of a ridge or mlp bridge to the receiver "
        "--model. The compressor gets a copy of it, and makes embeddings of the receiver.",
    )
    k: int | None = Field(
        default=None,
        ge=1,
        le=MAX_K,
        description="Rows of a compressed latent; absent: as many as the latent has.",
    )
    dim: int = Field(
        default=256,
        ge=1,
        description="Width of a compressed row. With --bridge, the receiver's width is used.",
    )
    rows: Reduction | None = Field(
        default=None,
        description="pca, autoencoder: how a latent is reduced to --k rows before each is coded; "
        "absent: mean-pool.",
    )
    steps: int | None = Field(
        default=None,
        ge=0,
        description="autoencoder, resampler: maximum optimizer steps; absent: 400, with "
        "--bridge 160.",
    )
    batch_size: int = Field(default=8, ge=2, description="Plans computed together.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="autoencoder, resampler: learning rate of AdamW; absent: 0.001, with "
        "--bridge 0.0001.",
    )
    margin: float = Field(
        default=2.0,
        ge=0,
        description="resampler with --bridge: nats per token by which a plan shall be likelier "
        "after its own message than after another task's.",
    )
    cosine: float = Field(
        default=0.0,
        ge=0,
        description="resampler with --bridge: weight of the cosine between the mean row of a "
        "message and that of the full latent through the bridge.",
    )
    check_every: int = Field(
        default=20,
        ge=1,
        description="autoencoder, resampler: steps between checks on held-out tasks.",
    )
    patience: int = Field(
        default=4,
        ge=1,
        description="autoencoder, resampler: checks without improvement after which training "
        "stops.",
    )
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="autoencoder, resampler: width of the hidden layers; absent: twice the "
        "width of the rows; with --bridge, of the receiver's embeddings.",
    )
    store_dtype: Literal["fp16", "fp32"] = Field(
        default="fp32", description="Dtype of the stored tensors."
    )
