"""Hidden rows in fewer bytes: number formats for the wire and for stored datasets.

Must not know the wire, files or pydantic. `docs/number-formats.md` defines every format for readers
in other languages, with the bounds of its error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from latentwire.errors import NumberFormatError as NumberFormatError
from latentwire.rotation import MAX_ROTATED_WIDTH, rotation_of

NumberFormat = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""How a matrix of float32 values is stored."""
NUMBER_FORMATS: tuple[NumberFormat, ...] = get_args(NumberFormat)

Rows = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
Scales = npt.NDArray[np.float32]

VALUE_DTYPES: Mapping[NumberFormat, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "int4": np.dtype("u1"),
}
"""The element type of the stored values; bfloat16 is its bits, int4 is two codes per byte."""
DEFAULT_ROTATION = 0
"""Seed of the rotation that writers use for int8 and int4."""
MAX_ROTATION_SEED = 2**31 - 1

# Codes are symmetric around 0, so the lowest value of the type is never written.
_MAX_CODE: Mapping[NumberFormat, int] = {"int8": 127, "int4": 7}
_INT4_ZERO = 8
# Rows whose largest value is outside 2^-100 to 2^100 are scaled by a power of two before they are
# rotated: sums of large values would overflow, and products of tiny ones would lose bits.
_MAX_EXPONENT = 100
_MAX_FLOAT32 = np.finfo(np.float32).max


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """A matrix in a number format.

    Attributes:
        format: of the values.
        values: `[rows, stored_width(format, width)]` of `VALUE_DTYPES[format]`, C order.
        scales: `[rows]` float32 for int8 and int4; None for the others.
        width: of the matrix that is meant.
        rotation: seed of the rotation that decoding undoes; None: not rotated.
    """

    format: NumberFormat
    values: Values
    scales: Scales | None
    width: int
    rotation: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of values and scales, in bytes."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


def has_scales(format: NumberFormat) -> bool:
    """Whether a format stores one scale per row, and may be rotated."""
    return format in _MAX_CODE


def stored_width(format: NumberFormat, width: int) -> int:
    """Return how many elements a stored row of `width` values has."""
    return -(-width // 2) if format == "int4" else width


def encode_rows(
    rows: Rows, format: NumberFormat, *, rotation: int | None = DEFAULT_ROTATION
) -> EncodedRows:
    """Encode a matrix.

    A row's bytes depend on the row alone, and are the same on every machine.

    Args:
        rows: `[n, width]` float32.
        format: of the result.
        rotation: seed of the rotation before int8 and int4, 0 to `MAX_ROTATION_SEED`; None: no
            rotation. The other formats do not rotate.

    Returns:
        The encoded matrix; float32 values are `rows` itself where it is in C order.

    Raises:
        NumberFormatError: in every format but float32, for a value that is not finite, or becomes
            infinite in the format.
        ValueError: for a rotation of rows that are wider than `MAX_ROTATED_WIDTH`.
    """
    width = rows.shape[1]
    if format == "float32":
        return EncodedRows(format, np.ascontiguousarray(rows, VALUE_DTYPES[format]), None, width)
    _check_finite(rows)
    if format == "float16":
        return EncodedRows(format, _float16(rows), None, width)
    if format == "bfloat16":
        return EncodedRows(format, _bfloat16(rows), None, width)
    codes, scales = _quantize(rows, _MAX_CODE[format], rotation)
    values = codes.astype(np.int8) if format == "int8" else _pack(codes)
    return EncodedRows(format, values, scales, width, rotation)


def decode_rows(encoded: EncodedRows) -> Rows:
    """Return the `[n, width]` float32 matrix of an encoded one.

    Every pattern of bits has a value, so nothing of a checked shape is refused. Values that are not
    finite come only from float32, float16, bfloat16 and from scales that are not.

    Raises:
        ValueError: when an array has another shape than the width and the format say.
    """
    values, width = encoded.values, encoded.width
    check_shapes(encoded)
    if encoded.format == "float32":
        return values
    if encoded.format == "float16":
        return values.astype(np.float32)
    if encoded.format == "bfloat16":
        return from_bfloat16(values)
    codes = _unpack(values, width) if encoded.format == "int4" else values.astype(np.float32)
    if encoded.rotation is not None and len(codes):
        codes = rotation_of(encoded.rotation, width).inverse(codes)
    assert encoded.scales is not None
    # Codes are rotated before they are scaled, so that no sum overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        codes *= encoded.scales[:, None]
    # Rounding may carry a value beyond the largest one. An infinite scale is no rounding.
    is_large = np.isfinite(encoded.scales) & (encoded.scales > _MAX_FLOAT32 / MAX_ROTATED_WIDTH)
    if is_large.any():
        codes[is_large] = np.clip(codes[is_large], -_MAX_FLOAT32, _MAX_FLOAT32)
    return codes


def check_shapes(encoded: EncodedRows) -> None:
    """Check an encoded matrix of unknown origin.

    Raises:
        ValueError: when the shapes do not agree with format and width; the text says how.
    """
    num_rows = len(encoded.values)
    if encoded.values.shape != (num_rows, stored_width(encoded.format, encoded.width)):
        raise ValueError(
            f"values of the shape {list(encoded.values.shape)} are not rows of {encoded.width} "
            f"{encoded.format} values"
        )
    if has_scales(encoded.format) != (encoded.scales is not None):
        needs = "needs" if has_scales(encoded.format) else "has no"
        raise ValueError(f"{encoded.format} {needs} scales")
    if encoded.scales is not None and encoded.scales.shape != (num_rows,):
        raise ValueError(f"there are {encoded.scales.size} scales for {num_rows} rows")
    if encoded.rotation is not None:
        check_rotation(encoded.format, encoded.width, encoded.rotation)


def check_rotation(format: NumberFormat, width: int, rotation: int) -> None:
    """Check that rows may be rotated.

    Raises:
        ValueError: when the format is never rotated, or the seed or the width has no rotation.
    """
    if not has_scales(format):
        raise ValueError(f"{format} is never rotated")
    if not 0 <= rotation <= MAX_ROTATION_SEED:
        raise ValueError(f"rotation must be from 0 to {MAX_ROTATION_SEED}")
    if width > MAX_ROTATED_WIDTH:
        raise ValueError(f"rows of {width} values are not rotated: at most {MAX_ROTATED_WIDTH}")


def to_bfloat16(values: Rows) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 values, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    # Adds just below half of the part that is dropped, and one more where the kept part is odd.
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    upper = (rounded >> np.uint32(16)).astype("<u2")
    # The sum could carry a NaN to an infinity or to a negative zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), upper)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> Rows:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _check_finite(rows: Rows) -> None:
    is_finite = np.isfinite(rows)
    if not is_finite.all():
        raise _error_at(rows, ~is_finite, "which is not finite")


def _error_at(rows: Rows, is_wrong: npt.NDArray[np.bool_], reason: str) -> NumberFormatError:
    row, column = (int(place) for place in np.argwhere(is_wrong)[0])
    value = float(rows[row, column])
    return NumberFormatError(row, f"holds {value:.6g} at position {column}, {reason}")


def _float16(rows: Rows) -> Values:
    with np.errstate(over="ignore"):
        values = rows.astype("<f2")
    is_infinite = np.isinf(values)
    if is_infinite.any():
        raise _error_at(rows, is_infinite, "beyond the largest float16 value, 65504")
    return values


def _bfloat16(rows: Rows) -> Values:
    bits = to_bfloat16(rows)
    is_infinite = (bits & np.uint16(0x7FFF)) == np.uint16(0x7F80)
    if is_infinite.any():
        raise _error_at(rows, is_infinite, "beyond the largest bfloat16 value, 3.38953e+38")
    return bits


def _quantize(rows: Rows, max_code: int, rotation: int | None) -> tuple[Rows, Scales]:
    """Return the codes as whole float32 numbers `[n, width]`, and the scales `[n]`."""
    num_rows, width = rows.shape
    if rotation is not None:
        check_rotation("int8", width, rotation)
    if not rows.size:
        return np.zeros(rows.shape, np.float32), np.zeros(num_rows, np.float32)
    scaled, exponents = _in_range(rows)
    # A copy either way: the codes are written into it.
    codes = np.array(scaled) if rotation is None else rotation_of(rotation, width).forward(scaled)
    largest = np.maximum(codes.max(axis=1), -codes.min(axis=1))
    scales = _scales(largest, exponents, max_code)
    if not np.isfinite(scales).all():
        row = int(np.argmin(np.isfinite(scales)))
        raise NumberFormatError(row, "is too large for a float32 scale once it is rotated")
    # A row of zeros has the scale 0; its codes are 0 by any other divisor, too.
    divisors = np.where(scales > 0, np.ldexp(scales.astype(np.float64), -exponents), 1.0)
    codes /= divisors.astype(np.float32)[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, -max_code, max_code, out=codes), scales


def _in_range(rows: Rows) -> tuple[Rows, npt.NDArray[np.int32]]:
    """Return the rows, extreme ones multiplied by 2^-exponent, and each row's exponent."""
    _, exponents = np.frexp(np.maximum(rows.max(axis=1), -rows.min(axis=1)))
    exponents = np.where(np.abs(exponents) > _MAX_EXPONENT, exponents, 0).astype(np.int32)
    if exponents.any():
        rows = np.ldexp(rows, -exponents[:, None])
    return rows, exponents


def _scales(largest: Scales, exponents: npt.NDArray[np.int32], max_code: int) -> Scales:
    """Return the scales `[n]`, each the least float32 value of which `max_code` reach the largest.

    A scale that was rounded down would clip the largest value, which shows in subnormal rows.
    """
    exact = np.ldexp(np.abs(largest).astype(np.float64) / max_code, exponents)
    with np.errstate(over="ignore"):
        scales = exact.astype(np.float32)
        is_below = scales < exact
        scales[is_below] = np.nextafter(scales[is_below], np.float32(np.inf))
    return scales


def _pack(codes: Rows) -> Values:
    """Return two codes per byte, the first one in the low four bits."""
    num_rows, width = codes.shape
    nibbles = np.full((num_rows, width + width % 2), _INT4_ZERO, dtype=np.uint8)
    nibbles[:, :width] += codes.astype(np.int8).view(np.uint8)
    packed: Values = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    return packed


def _unpack(values: Values, width: int) -> Rows:
    codes = np.empty((len(values), 2 * values.shape[1]), dtype=np.float32)
    codes[:, ::2] = values & 0x0F
    codes[:, 1::2] = values >> 4
    codes -= _INT4_ZERO
    return np.ascontiguousarray(codes[:, :width])
