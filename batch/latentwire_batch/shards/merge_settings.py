"""The settings of `latentwire merge`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_MERGE_`.
"""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire_batch.config import ShardFields
from latentwire_batch.locations import GivenDirectory, GivenOutput, GivenPlace


class MergeSettings(ShardFields, BaseSettings):
    """Settings of one merging. Never changed after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_MERGE_", env_ignore_empty=True, frozen=True
    )

    shards: CliPositionalArg[tuple[GivenPlace, ...]] = Field(
        description="Folders of shards, or folders that hold them, like the --output-dir of "
        "collect; also URLs."
    )
    output_dir: GivenOutput = Field(
        description="Directory to write the merged dataset to, or a URL like s3://bucket/folder; "
        "also -o."
    )
    work_dir: GivenDirectory | None = Field(
        default=None,
        description="Parent of the directories for unfinished files, when --output-dir is a URL. "
        "Absent: latentwire/collect in the user's cache.",
    )
    overwrite: bool = Field(
        default=False, description="Discard the dataset in --output-dir and merge again."
    )

    @field_validator("shards", "output_dir", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        """Refuse what a script passes when its own variable is not set."""
        if value == "" or (isinstance(value, list | tuple) and "" in value):
            raise ValueError("must not be empty")
        return value
