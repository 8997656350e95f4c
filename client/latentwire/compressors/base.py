"""What a compressor is, and the checks that all of them share.

This package needs numpy only. It must not know HTTP, datasets or the models that made the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from latentwire.bridge_manifest import content_hash
from latentwire.errors import CompressorError as CompressorError

COMPRESSED = "hidden_state_comp"
"""Name of a compressor's main array: as a key, a column and a field."""

Rows = npt.NDArray[np.float32]
Output = Literal["rows", "coefficients", "embeddings"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_K = 1 << 20

_ARRAY_NAME = re.compile(r"[a-z_]{1,64}")


class Compressor(Protocol):
    """Makes a few rows of the rows of a latent, and an estimate of the latent of the few rows.

    Every method is pure, deterministic and safe to call from several threads. It never writes to
    its arguments, and the arrays that it returns are its own: C-contiguous float32, no views.
    """

    @property
    def name(self) -> str:
        """Its name in requests, columns and tables; matches `NAME_PATTERN`."""

    @property
    def kind(self) -> str:
        """What it does, such as `mean-pool` or `pca`; a built-in one's kind is its name."""

    @property
    def k(self) -> int | None:
        """Most rows that `compress` returns; None: as many as the latent has."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON values that decide the result together with the tensors, `k` among them."""

    @property
    def content_hash(self) -> str:
        """SHA-256 of kind, parameters and tensors, in hexadecimal: see `compressor_hash`."""

    @property
    def source_width(self) -> int | None:
        """Width H of the rows that it reads; None: any."""

    @property
    def output(self) -> Output:
        """What the main array holds.

        - `rows`: hidden rows, or means of them. A bridge reads them as they are.
        - `coefficients`: numbers that only `decompress` gives a meaning.
        - `embeddings`: input embeddings of one receiver. The bridge `embeddings` reads them.
        """

    def compress(self, rows: Rows) -> dict[str, Rows]:
        """Compress a latent.

        Args:
            rows: `[L, H]` float32, finite. L may be 0.

        Returns:
            `COMPRESSED`: `[K, D]` float32, where K is at most k and at most L. `decompress` may
            need further arrays: two-dimensional float32, with names of `a-z` and `_`. They stay
            float32 in whatever number format the main array is stored.

        Raises:
            CompressorError: the rows are not as described or have another width, or a value of the
                result exceeds the range of float32.
        """

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        """Estimate the latent that was compressed.

        Args:
            arrays: as `compress` returned them; their values may have been rounded.
            num_rows: L of the latent.

        Returns:
            `[num_rows, H]` float32.

        Raises:
            CompressorError: the arrays cannot be of this compressor and such a latent.
        """


def compressor_hash(
    kind: str, parameters: Mapping[str, Any], tensors: Mapping[str, Rows] | None = None
) -> str:
    """Return the content hash of a compressor.

    Args:
        kind: what it does.
        parameters: JSON values.
        tensors: float32, by name; None: it has none.
    """
    return content_hash({"kind": kind, "parameters": dict(parameters)}, tensors or {})


def checked_k(k: int | None, name: str) -> int:
    """Return k of a compressor that has none of its own.

    Args:
        k: most rows that it shall return.
        name: of the compressor.

    Raises:
        CompressorError: k is missing or out of range.
    """
    if k is None:
        raise CompressorError(f"is required by compressor {name}", "k")
    if not 1 <= k <= MAX_K:
        raise CompressorError(f"must be from 1 to {MAX_K}, not {k}", "k")
    return k


def checked_rows(rows: npt.ArrayLike, width: int | None = None, field: str = "rows") -> Rows:
    """Return a latent as `[L, H]` float32: the same memory if it is of this type already.

    Args:
        rows: numbers in two dimensions.
        width: H that they must have; None: any.
        field: name of the argument, for errors.

    Raises:
        CompressorError: they have other dimensions or another width, or one is not finite in
            float32.
    """
    try:
        given = np.asarray(rows)
    except (ValueError, TypeError) as error:
        raise CompressorError("must be rows of equal length", field) from error
    if given.dtype.kind not in "fiu":
        raise CompressorError("must be numbers", field)
    if given.ndim != 2:
        raise CompressorError(f"must have two dimensions, not {given.ndim}", field)
    if given.shape[1] == 0:
        raise CompressorError("must have a width of at least 1", field)
    if width is not None and given.shape[1] != width:
        raise CompressorError(f"must have the width {width}, not {given.shape[1]}", field)
    with np.errstate(over="ignore"):
        result = cast("Rows", given.astype(np.float32, copy=False))
    is_finite = np.isfinite(result).all(axis=1)
    if not is_finite.all():
        raise CompressorError(f"row {int(is_finite.argmin())} is not finite in float32", field)
    return result


def checked_arrays(
    arrays: Mapping[str, npt.ArrayLike], *further: str, width: int | None = None
) -> dict[str, Rows]:
    """Return what `compress` made, as float32.

    Args:
        arrays: the main array and further ones.
        further: names of the further ones, all of which are required.
        width: D of the main array; None: any.

    Raises:
        CompressorError: an array is missing, is unknown, has other dimensions or another width, or
            is not finite.
    """
    expected = (COMPRESSED, *further)
    for name in expected:
        if name not in arrays:
            raise CompressorError("is required", name)
    for name in arrays:
        if name not in expected:
            raise CompressorError("is no array of this compressor", str(name))
    return {
        name: checked_rows(arrays[name], width if name == COMPRESSED else None, name)
        for name in expected
    }


def checked_result(values: npt.NDArray[Any]) -> Rows:
    """Return a result as float32 of its own.

    Args:
        values: `[K, D]`, float64 or float32, of any memory layout.

    Raises:
        CompressorError: a value exceeds the range of float32.
    """
    with np.errstate(over="ignore"):
        result = np.array(values, dtype=np.float32, order="C", copy=True)
    if not np.isfinite(result).all():
        raise CompressorError("a value of the result exceeds the range of float32", "rows")
    return result


def checked_count(num_rows: int, num_kept: int, k: int | None = None) -> int:
    """Return how many rows a latent has, compared with the number of rows that were kept of it.

    Args:
        num_rows: of the latent.
        num_kept: rows of the main array.
        k: of the compressor; None: it keeps as many as the latent has.

    Raises:
        CompressorError: a latent of this length would have been compressed to another number of
            rows.
    """
    if num_rows < 0:
        raise CompressorError(f"must be at least 0, not {num_rows}", "num_rows")
    expected = num_rows if k is None else min(k, num_rows)
    if num_kept != expected:
        raise CompressorError(
            f"has {num_kept} rows, and a latent of {num_rows} rows is compressed to {expected}",
            COMPRESSED,
        )
    return num_rows


def is_array_name(name: object) -> bool:
    """Say whether a further array of a compressor may have this name."""
    return isinstance(name, str) and _ARRAY_NAME.fullmatch(name) is not None
