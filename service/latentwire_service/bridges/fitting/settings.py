"""Settings of `latentwire fit-bridge`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_FIT_BRIDGE_`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.constants import MAX_SEED


class FitSettings(BaseSettings):
    """One fit."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_FIT_BRIDGE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )

    dataset: CliPositionalArg[Path] = Field(
        description="Output directory of collect, or its data.parquet."
    )
    kind: Literal["ridge", "mlp", "interlat"] = Field(
        default="mlp",
        description="ridge: linear, in closed form. mlp: a residual MLP on top, trained. interlat: "
        "attention over the latent, trained.",
    )
    output_dir: Path = Field(description="Directory to write the bridge to; also -o.")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the bridge; absent: the name of its directory.",
    )
    model: str = Field(
        default="demo",
        min_length=1,
        description="Receiver: hub id, local directory, .gguf file, or `demo`. It is not changed.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        default="auto", description="Device of the receiver. auto: cuda, else mps, else cpu."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Dtype of the receiver. auto: bf16 on a GPU, fp32 on the CPU. The bridge is "
        "always trained in fp32.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; absent: torch's choice."
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/latentwire"), description="Directory for converted GGUF files."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run code that is part of a hub model. Only for models that you trust.",
    )
    sender_width: int | None = Field(
        default=None,
        ge=1,
        description="Width of the sender's rows; absent: that of the dataset's first latent.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Maximum number of rows to read; absent: all."
    )
    max_rows: int = Field(
        default=256,
        ge=1,
        description="Longer latents and plans are cut to so many rows and tokens.",
    )
    held_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Fraction of the tasks that is not trained on. The scores are theirs.",
    )
    max_scored: int = Field(
        default=128, ge=2, description="Maximum number of held-out tasks to score."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MAX_SEED,
        description="Decides which tasks are held out, and their order.",
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
    overwrite: bool = Field(
        default=False, description="Discard the bridge in --output-dir and start over."
    )
