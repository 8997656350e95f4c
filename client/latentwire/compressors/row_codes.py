"""Compressors that code each row by itself, after a compressor without training chose the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latentwire.compressors.base import COMPRESSED, Compressor, Rows, checked_arrays
from latentwire.compressors.layers import Array, Tensors, gelu, linear


class RowCode(Protocol):
    """Codes each row by itself."""

    def encode(self, rows: Rows) -> Array:
        """Code rows `[n, H]` as `[n, D]`."""

    def decode(self, codes: Rows) -> Array:
        """Estimate the rows `[n, H]` of their codes. A code of zeros is near the mean row."""


@dataclass(frozen=True, eq=False)
class Pca:
    """Coordinates along the directions in which training rows vary most, in float64.

    Attributes:
        tensors: `mean` `[H]`, `components` `[D, H]`, which are orthonormal.
    """

    tensors: Tensors

    def encode(self, rows: Rows) -> Array:
        """As `RowCode.encode`."""
        components = self.tensors["components"].astype(np.float64)
        result: Array = (rows.astype(np.float64) - self.tensors["mean"]) @ components.T
        return result

    def decode(self, codes: Rows) -> Array:
        """As `RowCode.decode`."""
        components = self.tensors["components"].astype(np.float64)
        result: Array = codes.astype(np.float64) @ components + self.tensors["mean"]
        return result


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A linear map and a residual MLP in each direction, on standardized rows.

    Attributes:
        tensors: the state of `latentwire_service.compressors.modules.Autoencoder`.
    """

    tensors: Tensors

    def encode(self, rows: Rows) -> Array:
        """As `RowCode.encode`."""
        return self._apply((rows - self.tensors["mean"]) / self.tensors["deviation"], "encode")

    def decode(self, codes: Rows) -> Array:
        """As `RowCode.decode`."""
        result: Array = self._apply(codes, "decode") * self.tensors["deviation"]
        return result + self.tensors["mean"]

    def _apply(self, values: Array, name: str) -> Array:
        hidden = gelu(linear(values, self.tensors, f"{name}_up"))
        result: Array = linear(values, self.tensors, name)
        return result + linear(hidden, self.tensors, f"{name}_down")


@dataclass(frozen=True, eq=False)
class RowMap:
    """Reduces a latent to its rows, and codes each of them.

    Attributes:
        code: codes rows.
        reduction: chooses the rows; None: all of them.
        dim: D.
    """

    code: RowCode
    reduction: Compressor | None
    dim: int

    def compress(self, rows: Rows) -> dict[str, Array]:
        """Return the codes under `COMPRESSED`, and what the reduction needs."""
        reduced = {COMPRESSED: rows} if self.reduction is None else self.reduction.compress(rows)
        return {**reduced, COMPRESSED: self.code.encode(reduced[COMPRESSED])}

    def checked(self, arrays: Mapping[str, Rows]) -> dict[str, Rows]:
        """Return the arrays as float32, if they can be of this map."""
        # The reduction checks its own arrays.
        further = () if self.reduction is None else [each for each in arrays if each != COMPRESSED]
        return checked_arrays(arrays, *further, width=self.dim)

    def decompress(self, arrays: dict[str, Rows], num_rows: int) -> Array:
        """Return the estimate `[num_rows, H]`; rows whose codes are missing are near the mean."""
        most = num_rows if self.reduction is None else min(num_rows, self.reduction.k or num_rows)
        codes = np.zeros((most, self.dim), np.float32)
        codes[: len(arrays[COMPRESSED])] = arrays[COMPRESSED]
        decoded = self.code.decode(codes)
        if self.reduction is None:
            return decoded
        return self.reduction.decompress(
            {**arrays, COMPRESSED: decoded.astype(np.float32)}, num_rows
        )
