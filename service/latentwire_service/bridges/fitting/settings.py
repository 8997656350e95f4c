"""Settings of `latentwire fit-bridge`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_FIT_BRIDGE_`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentwire_service.fitting.settings import DatasetSettings, ReceiverSettings, fit_config


class FitSettings(ReceiverSettings, DatasetSettings):
    """One fit. The fields of the last base come first."""

    model_config = fit_config("LATENTWIRE_FIT_BRIDGE_")

    kind: Literal["ridge", "mlp", "interlat"] = Field(
        default="mlp",
        description="ridge: linear, in closed form. mlp: a residual MLP on top, trained. interlat: "
        "attention over the latent, trained.",
    )
    sender_width: int | None = Field(
        default=None,
        ge=1,
        description="Width of the sender's rows; absent: that of the dataset's first latent.",
    )
    steps: int = Field(default=80, ge=0, description="mlp, interlat: maximum optimizer steps.")
    batch_size: int = Field(default=8, ge=2, description="Plans computed together.")
    learning_rate: float = Field(
        default=5e-5, gt=0, description="mlp, interlat: learning rate of AdamW."
    )
    margin: float = Field(
        default=1.2,
        ge=0,
        description="mlp, interlat: nats per token by which a plan shall be likelier after its own "
        "latent than after another task's. With 0, the bridge learns to carry nothing.",
    )
    check_every: int = Field(
        default=10, ge=1, description="mlp, interlat: steps between checks on held-out tasks."
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="mlp, interlat: checks without improvement after which training stops.",
    )
    ridge: float = Field(default=10.0, gt=0, description="ridge, mlp: penalty on large weights.")
    window: int = Field(
        default=2,
        ge=1,
        le=8,
        description="ridge, mlp: neighbouring rows that an embedding depends on. 1 makes a bridge "
        "that can feed latent steps.",
    )
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="mlp: width of the hidden layer; absent: four times the receiver's width.",
    )
    before: str = Field(
        default="Repeat the message: ",
        max_length=4096,
        description="Text of the user turn before the latent.",
    )
    after: str = Field(
        default="", max_length=4096, description="Text of the user turn after the latent."
    )
    store_dtype: Literal["fp16", "fp32"] = Field(
        default="fp16", description="Dtype of the stored tensors."
    )
