"""A compressor whose rows read the whole latent, and which reconstructs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentwire.compressors.base import COMPRESSED, Rows, checked_arrays
from latentwire.compressors.layers import (
    Array,
    Tensors,
    attention,
    gelu,
    layer_norm,
    linear,
    positions,
)
from latentwire.compressors.learned_config import ResamplerConfig
from latentwire.compressors.linear import segment_means


@dataclass(frozen=True, eq=False)
class ResamplerMap:
    """Means of segments under a linear map, to which attention over all rows adds.

    Attributes:
        tensors: the state of `latentwire_service.compressors.modules.Resampler`.
        config: sizes.
        dim: D.
    """

    tensors: Tensors
    config: ResamplerConfig
    dim: int

    def compress(self, rows: Rows) -> dict[str, Array]:
        """Return min(slots, L) codes."""
        num_slots = min(self.config.slots, len(rows))
        if not num_slots:
            return {COMPRESSED: np.zeros((0, self.dim))}
        given = (rows - self.tensors["mean"]) / self.tensors["deviation"]
        means = segment_means(given, num_slots).astype(np.float32)
        read = linear(given, self.tensors, "read")
        read = read + linear(positions(len(rows)), self.tensors, "place")
        read = layer_norm(read, self.tensors, "norm")
        keys, values = (linear(read, self.tensors, name) for name in ("k", "v"))
        queries = self.tensors["query"][:num_slots]
        codes = linear(means, self.tensors, "encode") + linear(
            attention(queries, keys, values, self.config.num_heads), self.tensors, "o"
        )
        hidden = gelu(linear(layer_norm(codes, self.tensors, "norm2"), self.tensors, "up"))
        return {COMPRESSED: codes + linear(hidden, self.tensors, "down")}

    def checked(self, arrays: Mapping[str, Rows]) -> dict[str, Rows]:
        """Return the array as float32, if it can be of this map."""
        return checked_arrays(arrays, width=self.dim)

    def decompress(self, arrays: dict[str, Rows], num_rows: int) -> Array:
        """Return the estimate `[num_rows, H]`; codes that are missing are zeros."""
        num_slots = min(self.config.slots, num_rows)
        if not num_slots:
            return np.zeros((0, len(self.tensors["mean"])))
        codes = np.zeros((num_slots, self.dim), np.float32)
        codes[: len(arrays[COMPRESSED])] = arrays[COMPRESSED]
        # Row t is in the last segment that begins at t or before.
        starts = np.arange(num_slots) * num_rows // num_slots
        segments = np.searchsorted(starts, np.arange(num_rows), side="right") - 1
        queries = linear(positions(num_rows), self.tensors, "asked")
        keys, values = (linear(codes, self.tensors, name) for name in ("back_k", "back_v"))
        seen = queries + attention(queries, keys, values, self.config.num_heads)
        hidden = gelu(linear(layer_norm(seen, self.tensors, "back_norm"), self.tensors, "back_up"))
        result = linear(codes, self.tensors, "decode")[segments]
        result = result + linear(hidden, self.tensors, "back_down")
        return result * self.tensors["deviation"] + self.tensors["mean"]
