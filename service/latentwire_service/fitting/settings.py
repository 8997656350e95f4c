"""Settings that all commands share that fit something to a dataset of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.constants import MAX_SEED


def fit_config(env_prefix: str) -> SettingsConfigDict:
    """Return the configuration of a command's settings.

    Args:
        env_prefix: what the names of its variables begin with.
    """
    return SettingsConfigDict(
        env_prefix=env_prefix,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )


class DatasetSettings(BaseSettings):
    """What is read, what is held out, and where the result goes."""

    dataset: CliPositionalArg[str] = Field(
        description="Output directory of collect, or its data.parquet; also a URL."
    )
    split: str | None = Field(
        default=None, description="Split to read, of a dataset that has several."
    )
    output_dir: Path = Field(description="Directory to write the result to; also -o.")
    overwrite: bool = Field(
        default=False, description="Discard the result in --output-dir and start over."
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the result; absent: the name of its directory.",
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


class ReceiverSettings(BaseSettings):
    """The model that reads messages."""

    model: str = Field(
        default="demo",
        min_length=1,
        description="Receiver: hub id, local directory, .gguf file, or `demo`. It is not changed.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        default="auto", description="Device to compute on. auto: cuda, else mps, else cpu."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Dtype of the receiver. auto: bf16 on a GPU, fp32 on the CPU. What is fitted "
        "is always in fp32.",
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
