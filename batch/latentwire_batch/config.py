"""The settings of one collection: flags, else `LATENTWIRE_COLLECT_*` variables, else defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from latentwire import PlanOptions
from latentwire.constants import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MAX_RETRIES,
    DEFAULT_PROMPT_TEMPLATE,
    MAX_SEED,
    MAX_STOP_STRINGS,
)
from latentwire.protocol import ChatTemplate, StopString
from latentwire_batch.tasks.rows import RowFields

# A collection fills all slots of a replica, and rows share its speed: 64 slots of 2048 tokens at
# 100 tokens/s take 20 minutes together. That a replica died shows by its connection, not by this.
_ROW_TIMEOUT_S = 3600.0
_SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20}
_SIZE_UNITS["GIB"] = 1 << 30
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class CollectSettings(BaseSettings):
    """One collection's settings. Never read at import, never written after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_COLLECT_", env_ignore_empty=True, frozen=True
    )

    dataset: Path = Field(
        description="Tasks: JSON (a list), JSON Lines, Parquet, or a save_to_disk directory."
    )
    output_dir: Path = Field(description="Where the dataset of latents is made.")
    task_field: str = Field(default="task", description="Field that holds the task.")
    conversations_index: int | None = Field(
        default=None, ge=0, description="Take conversations[i]['value'] as the task instead."
    )
    id_field: str = Field(default="id", description="Field with the id; else the row's index.")
    limit: int | None = Field(default=None, ge=1, description="Only the first rows.")

    replica: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Address of a running replica, like http://host:8000; may be repeated. A name "
        "with several addresses stands for all of them. Without it, replicas are started here.",
    )
    api_key: SecretStr | None = Field(default=None, description="Key, where replicas want one.")
    concurrency: int | None = Field(
        default=None,
        ge=1,
        description="Rows in flight per replica; absent: its slots, limits.max_slots of /info.",
    )
    timeout: float = Field(
        default=_ROW_TIMEOUT_S, gt=0, description="Longest wait for one row, in seconds."
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES, ge=0, description="Further tries for a row that failed."
    )
    replica_timeout: float = Field(
        default=120.0, gt=0, description="How long to wait while no replica is up, in seconds."
    )

    model: str = Field(default="demo", description="Own replicas: model to serve.")
    device: Literal["auto", "cuda", "mps", "cpu"] | None = Field(
        default=None, description="Own replicas: device."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] | None = Field(
        default=None, description="Own replicas: compute dtype."
    )
    threads: int | None = Field(default=None, ge=1, description="Own replicas: CPU threads.")
    max_slots: str | None = Field(
        default=None, pattern=r"^(auto|\d+)$", description="Own replicas: slots, or auto."
    )
    max_model_len: str | None = Field(
        default=None, pattern=r"^(auto|\d+)$", description="Own replicas: most tokens, or auto."
    )
    trust_remote_code: bool = Field(
        default=False, description="Own replicas: run code that comes with a hub model."
    )

    k: int | None = Field(default=None, ge=0, description="Hidden rows to keep; absent: all.")
    prompt_template: str = Field(
        default=DEFAULT_PROMPT_TEMPLATE, description="Prompt; each {task} becomes the task."
    )
    chat_template: ChatTemplate = Field(
        default="auto", description="Chat markup put around the prompt."
    )
    max_new_tokens: int = Field(
        default=DEFAULT_MAX_NEW_TOKENS, ge=1, description="Most tokens to generate."
    )
    do_sample: bool = Field(default=True, description="Sample, or decode greedily.")
    temperature: float = Field(default=1.0, ge=0, le=100, description="0 means greedy.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus mass; 1 keeps all tokens.")
    top_k: int = Field(default=0, ge=0, description="Most tokens kept; 0 keeps all.")
    stop: tuple[StopString, ...] = Field(
        default=(),
        max_length=MAX_STOP_STRINGS,
        description="The plan ends before this text; may be repeated.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the dataset; each row's comes from it. Drawn and recorded if absent.",
    )

    overwrite: bool = Field(default=False, description="Discard what is there and start afresh.")
    retry_failed: bool = Field(
        default=False, description="Ask again for the rows that failed, and merge them in."
    )
    max_shard_size: int = Field(
        default=500 * 10**6,
        ge=1,
        description="Bytes in one Arrow file of hf_dataset at most, like 500MB or 1GiB.",
    )

    @field_validator("replica", mode="before")
    @classmethod
    def _split_addresses(cls, value: object) -> object:
        """Let an environment variable hold several addresses, with commas between."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _parse_size(cls, value: object) -> object:
        """Read sizes like `500MB`."""
        if not isinstance(value, str):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].upper() not in _SIZE_UNITS:
            raise ValueError("must be a number of bytes, or like 500MB or 1GiB")
        return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])

    @property
    def row_fields(self) -> RowFields:
        """Which fields of a record make a row."""
        return RowFields(self.task_field, self.conversations_index, self.id_field)

    @property
    def plan_options(self) -> PlanOptions:
        """What is sent with every row beside its task, k and seed."""
        return {
            "prompt_template": self.prompt_template,
            "chat_template": self.chat_template,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": list(self.stop),
        }
