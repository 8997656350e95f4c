"""The settings of `latentwire compress`: flags, else variables, else defaults.

The variables begin with `LATENTWIRE_COMPRESS_`.
"""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from latentwire.number_formats import NumberFormat
from latentwire_batch.compression.settings import CompressorFields
from latentwire_batch.config import ShardFields
from latentwire_batch.locations import GivenDirectory, GivenPlace


class CompressSettings(
    # Flags are listed from the last base to the first.
    ShardFields,
    CompressorFields,
    BaseSettings,
):
    """Settings of one rewriting. Never changed after construction."""

    model_config = SettingsConfigDict(
        env_prefix="LATENTWIRE_COMPRESS_", env_ignore_empty=True, frozen=True
    )

    dataset: CliPositionalArg[GivenPlace] = Field(
        description="Output of collect, a Parquet file, or a save_to_disk directory; also a URL."
    )
    output_dir: GivenDirectory = Field(
        description="Directory to write the new dataset to; also -o."
    )
    k: int | None = Field(
        default=None, ge=1, description="Maximum number of rows that a compressor returns."
    )
    storage_dtype: NumberFormat | None = Field(
        default=None,
        description="Number format of hidden_state and of the new columns; absent: hidden_state "
        "stays as it is, and the new columns are float32.",
    )
    overwrite: bool = Field(
        default=False, description="Discard the dataset in --output-dir and start over."
    )

    @field_validator("dataset", "output_dir", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        """Refuse what a script passes when its own variable is not set: it is no path."""
        if value == "":
            raise ValueError("must not be empty")
        return value
