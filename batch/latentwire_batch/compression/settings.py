"""Flags that say in which form latents are stored, and the form that they give."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import NoDecode

from latentwire.compressors import Compressor, CompressorError, CompressorSpec
from latentwire_batch.compression.stored_form import ColumnCompressor, named_columns
from latentwire_batch.errors import UsageError


class CompressorFields(BaseModel):
    """Which compressors are used."""

    compressor: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Add a column of compressed latents: NAME or DIRECTORY of a compressor, "
        "optionally with :K. Repeat the flag for several; a variable separates them by commas.",
    )
    replace: bool = Field(
        default=False,
        description="Leave the column hidden_state out: only compressed latents are stored.",
    )

    @field_validator("compressor", mode="before")
    @classmethod
    def _split_compressors(cls, value: object) -> object:
        """Let an environment variable hold several, separated by commas."""
        if not isinstance(value, str):
            return value
        return tuple(filter(None, map(str.strip, value.split(","))))


def chosen_compressors(
    fields: CompressorFields, k: int | None, taken: Collection[str] = ()
) -> tuple[ColumnCompressor, ...]:
    """Make the compressors that the flags name.

    Args:
        fields: the flags.
        k: for compressors without a K of their own; None: none is given.
        taken: columns that exist.

    Raises:
        UsageError: when a compressor does not exist or cannot be made, or they do not fit together.
    """
    if fields.replace and not fields.compressor:
        raise UsageError("--replace: needs --compressor")
    try:
        return named_columns([_made(given, k) for given in fields.compressor], taken)
    except CompressorError as error:
        reason = error.reason if error.field == "compressor" else error
        raise UsageError(f"--compressor: {reason}") from error


def _made(given: str, k: int | None) -> Compressor:
    spec = CompressorSpec.parse(given)
    if spec.dtype is not None:
        raise CompressorError("takes no number format; --storage-dtype is for all", given)
    try:
        return spec.make(k)
    except CompressorError as error:
        if error.field != "k" or spec.k is not None:
            raise
        raise UsageError(f"--k: {error.reason}") from error
