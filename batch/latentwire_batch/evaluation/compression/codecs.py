"""One way to send a latent: a compressor, or none, and a number format. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.compressors.base import COMPRESSED, Compressor, Rows
from latentwire.number_formats import (
    DEFAULT_ROTATION,
    EncodedRows,
    NumberFormat,
    decode_rows,
    encode_rows,
    has_scales,
)

FULL = "full"


class CodecError(ValueError):
    """A latent cannot be sent this way; the text names the codec and is for the terminal."""


@dataclass(frozen=True, eq=False)
class Payload:
    """A latent as it is sent or stored.

    Attributes:
        arrays: by name; `COMPRESSED` is the main one.
        shape: `[L, H]` of the full latent.
    """

    arrays: Mapping[str, EncodedRows]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all values and scales."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, eq=False)
class Codec:
    """A compressor and a number format.

    Attributes:
        label: unique among those of an evaluation, for example `mean-pool:16@int8`.
        compressor: None sends the full latent.
        dtype: format of the main array. Further arrays stay float32: they may hold places.
        rotation: seed of the rotation before int8 and int4; None: no rotation.
    """

    label: str
    compressor: Compressor | None = None
    dtype: NumberFormat = "float32"
    rotation: int | None = DEFAULT_ROTATION

    @property
    def output(self) -> str:
        """What a receiver makes of the main array: see `Compressor`."""
        return "rows" if self.compressor is None else self.compressor.output

    @property
    def changes_nothing(self) -> bool:
        """Whether a receiver gets the full latent bit for bit."""
        return self.compressor is None and self.dtype == "float32"

    def encode(self, rows: Rows) -> Payload:
        """Compress a latent.

        Args:
            rows: `[L, H]` float32.

        Raises:
            CodecError: the compressor or the format does not take it.
        """
        try:
            made = {COMPRESSED: rows} if self.compressor is None else self.compressor.compress(rows)
            arrays = {
                name: encode_rows(
                    array,
                    self.dtype if name == COMPRESSED else "float32",
                    rotation=self.rotation,
                )
                for name, array in made.items()
            }
        except ValueError as error:
            raise CodecError(f"{self.label}: {error}") from error
        return Payload(arrays, rows.shape)

    def estimate(self, payload: Payload) -> Rows:
        """Return the estimate `[L, H]` of the full latent.

        Raises:
            CodecError: the compressor cannot be undone.
        """
        arrays = {name: decode_rows(array) for name, array in payload.arrays.items()}
        if self.compressor is None:
            return arrays[COMPRESSED]
        try:
            estimate = self.compressor.decompress(arrays, payload.shape[0])
        except ValueError as error:
            raise CodecError(f"{self.label}: {error}") from error
        if estimate.shape != payload.shape:
            raise CodecError(
                f"{self.label}: the estimate has the shape {list(estimate.shape)}, and the latent "
                f"{list(payload.shape)}"
            )
        return estimate

    def message(self, payload: Payload) -> Rows:
        """Return the rows that are sent to the receiver: see `Compressor.output`.

        Raises:
            CodecError: the compressor cannot be undone.
        """
        if self.output == "coefficients":
            return self.estimate(payload)
        return decode_rows(payload.arrays[COMPRESSED])

    def to_json(self) -> dict[str, Any]:
        """Return what decides the values, as JSON values."""
        compressor = self.compressor
        facts = None
        if compressor is not None:
            names = ("name", "kind", "k", "content_hash", "output")
            facts = {name: getattr(compressor, name) for name in names}
            facts["parameters"] = dict(compressor.parameters)
        return {
            "name": self.label,
            "compressor": facts,
            "dtype": self.dtype,
            "rotation": self.rotation if has_scales(self.dtype) else None,
        }


def relative_error(estimate: Rows, rows: Rows) -> float:
    """Return the Frobenius norm of the difference, relative to that of the full latent.

    Args:
        estimate: `[L, H]`.
        rows: `[L, H]`. Of rows of zeros, the error is 0 or infinite.
    """
    whole = np.linalg.norm(rows.astype(np.float64))
    difference = np.linalg.norm(estimate.astype(np.float64) - rows)
    if whole == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / whole)


def mean_cosine(estimate: Rows, rows: Rows) -> float:
    """Return the mean over the rows of their cosine with the estimate's; 0 where one is zero."""
    left, right = estimate.astype(np.float64), rows.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("lh,lh->l", left, right)
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return float(cosines.mean())
