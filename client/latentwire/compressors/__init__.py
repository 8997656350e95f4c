"""Compressors: a latent of `[L, H]` rows to a few rows, and back to an estimate of it."""

from latentwire.compressors.base import (
    COMPRESSED,
    Compressor,
    CompressorError,
    Output,
    Rows,
    checked_arrays,
    checked_rows,
    compressor_hash,
)
from latentwire.compressors.registry import compressor_names, make_compressor, named_compressor
from latentwire.compressors.spec import CompressorSpec

__all__ = [
    "COMPRESSED",
    "Compressor",
    "CompressorError",
    "CompressorSpec",
    "Output",
    "Rows",
    "checked_arrays",
    "checked_rows",
    "compressor_hash",
    "compressor_names",
    "make_compressor",
    "named_compressor",
]
