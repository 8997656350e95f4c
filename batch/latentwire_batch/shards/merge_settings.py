"""The settings of `latentwire merge`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_MERGE_`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire_batch.config import ShardFields


class MergeSettings(ShardFields, BaseSettings):
    """Settings of one merging. Never changed after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_MERGE_", env_ignore_empty=True, frozen=True
    )

    shards: CliPositionalArg[tuple[Path, ...]] = Field(
        description="Folders of shards, or folders that hold them, like the --output-dir of "
        "collect."
    )
    output_dir: Path = Field(description="Directory to write the merged dataset to; also -o.")
    overwrite: bool = Field(
        default=False, description="Discard the dataset in --output-dir and merge again."
    )

    @field_validator("shards", "output_dir", mode="before")
    @classmethod
    def _refuse_other_places(cls, value: object) -> object:
        """Refuse URLs, and what a script passes when its own variable is not set."""
        for place in value if isinstance(value, list | tuple) else (value,):
            if place == "":
                raise ValueError("must not be empty")
            if "://" in str(place):
                raise ValueError("must be a directory: copy shards from and to a URL yourself")
        return value
