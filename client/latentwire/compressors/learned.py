"""Compressors that were fitted to a dataset: inference in numpy."""

from __future__ import annotations

from collections.abc import Mapping

from latentwire.compressors.base import Compressor, CompressorError, Rows
from latentwire.compressors.manifest import CompressorManifest


def learned_compressor(
    manifest: CompressorManifest,
    tensors: Mapping[str, Rows],  # noqa: ARG001
    k: int | None,  # noqa: ARG001
) -> Compressor:
    """Make the compressor of a directory.

    Args:
        manifest: of the directory; its `name` is set.
        tensors: of the directory, float32 and finite, by name.
        k: most rows that it shall return, at most the manifest's; None: the manifest's.

    Raises:
        CompressorError: a tensor is missing, is unknown or has a wrong shape, or `config` is wrong.
    """
    raise CompressorError(f"compressors of kind {manifest.kind} cannot be loaded", "compressor")
