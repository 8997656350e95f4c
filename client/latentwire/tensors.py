"""Hidden states to bytes and back: the one place that knows dtype, shape and byte order."""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.errors import ProtocolError
from latentwire.latent import HiddenState
from latentwire.number_formats import (
    DEFAULT_ROTATION,
    VALUE_DTYPES,
    EncodedRows,
    NumberFormat,
    check_rotation,
    decode_rows,
    encode_rows,
    has_scales,
    stored_width,
)

# Little-endian float32 is the wire's default dtype; on little-endian hosts it is the native one.
WIRE_DTYPE = np.dtype("<f4")
_MAX_SIZE = 2**31 - 1
# base64 maps 3 bytes to 4 characters, so pieces of a multiple of 3 bytes join without padding.
# 48 KiB encodes in about 30 us, the longest time that one piece holds the GIL.
_PIECE_BYTES = 48 * 1024


class TensorError(ProtocolError):
    """A wire tensor contradicts itself.

    Attributes:
        field: the field of `HiddenState` at fault.
        reason: what is wrong, without the field's name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"hidden_state.{field} {reason}")
        self.field = field
        self.reason = reason


def encode_base64(matrix: npt.NDArray[np.float32]) -> bytes:
    """Encode a float32 matrix as padded base64 of its C-order little-endian bytes.

    Args:
        matrix: `[rows, hidden_size]` float32, any strides.

    Returns:
        ASCII base64; see `encode_values`.
    """
    return encode_values(np.ascontiguousarray(matrix, dtype=WIRE_DTYPE))


def encode_values(values: npt.NDArray[Any]) -> bytes:
    """Encode the bytes of an array as padded base64.

    Args:
        values: little-endian, C order.

    Returns:
        ASCII base64. It is encoded in pieces, so that a large latent does not keep the GIL from the
        event loop's thread.
    """
    raw = values.reshape(-1).view(np.uint8).data
    pieces = (
        binascii.b2a_base64(raw[start : start + _PIECE_BYTES], newline=False)
        for start in range(0, len(raw), _PIECE_BYTES)
    )
    return b"".join(pieces)


def encode_hidden_state(
    matrix: npt.NDArray[np.float32],
    dtype: NumberFormat = "float32",
    *,
    rotation: int | None = DEFAULT_ROTATION,
) -> HiddenState:
    """Return a `[rows, hidden_size]` float32 matrix as a wire tensor.

    Args:
        matrix: any strides.
        dtype: its number format on the wire.
        rotation: seed of the rotation before int8 and int4; None: no rotation.

    Raises:
        NumberFormatError: when a value does not fit the format; the text names its row.
    """
    encoded = encode_rows(matrix, dtype, rotation=rotation)
    return wire_tensor(encoded, encode_values(encoded.values).decode("ascii"))


def wire_tensor(encoded: EncodedRows, data: str = "") -> HiddenState:
    """Describe an encoded matrix as a wire tensor.

    Args:
        encoded: the matrix.
        data: base64 of its values; empty when the caller fills it in later.
    """
    scales = encoded.scales
    return HiddenState(
        data=data,
        dtype=encoded.format,
        shape=(len(encoded.values), encoded.width),
        scales=None if scales is None else encode_base64(scales).decode("ascii"),
        rotation=encoded.rotation,
    )


def decode_row(data: str) -> npt.NDArray[np.float32]:
    """Decode base64 into a read-only `[hidden_size]` float32 view of its bytes.

    Raises:
        ProtocolError: when the data is not base64 or not a whole number of values.
    """
    try:
        raw = _decode_base64("data", data)
    except TensorError as error:
        raise ProtocolError(f"row {error.reason}") from error
    if len(raw) % WIRE_DTYPE.itemsize:
        raise ProtocolError(
            f"row holds {len(raw)} bytes, which is not a whole number of float32 values"
        )
    return np.frombuffer(raw, dtype=WIRE_DTYPE)


def decode_hidden_state(hidden_state: HiddenState) -> npt.NDArray[np.float32]:
    """Decode a wire tensor of any dtype.

    Returns:
        `[rows, hidden_size]` float32: with the dtype float32 a read-only view of its bytes, with
        the others an array of its own.

    Raises:
        TensorError: when a field is not base64, or contradicts shape and dtype.
    """
    return decode_rows(encoded_rows(hidden_state))


def encoded_rows(hidden_state: HiddenState) -> EncodedRows:
    """Return a wire tensor as it is encoded, its values as read-only views; see above."""
    (rows, width), dtype = hidden_state.shape, hidden_state.dtype
    kind, shape = VALUE_DTYPES[dtype], (rows, stored_width(dtype, width))
    raw = _decode_base64("data", hidden_state.data)
    num_bytes = shape[0] * shape[1] * kind.itemsize
    if not (0 <= rows <= _MAX_SIZE and 0 <= width <= _MAX_SIZE) or len(raw) != num_bytes:
        raise TensorError(
            "data",
            f"holds {len(raw)} bytes; shape [{rows}, {width}] {dtype} needs {num_bytes} bytes",
        )
    if hidden_state.rotation is not None:
        try:
            check_rotation(dtype, width, hidden_state.rotation)
        except ValueError as error:
            raise TensorError("rotation", f"cannot be used: {error}") from error
    return EncodedRows(
        format=dtype,
        values=np.frombuffer(raw, dtype=kind).reshape(shape),
        scales=_scales(hidden_state),
        width=width,
        rotation=hidden_state.rotation,
    )


def _scales(hidden_state: HiddenState) -> npt.NDArray[np.float32] | None:
    """Return the scales of a wire tensor `[rows]`; None for a dtype without scales."""
    num_rows, dtype = hidden_state.shape[0], hidden_state.dtype
    if not has_scales(dtype):
        if hidden_state.scales is not None:
            raise TensorError("scales", f"must be left out with the dtype {dtype}")
        return None
    if hidden_state.scales is None:
        raise TensorError("scales", f"is required with the dtype {dtype}")
    raw = _decode_base64("scales", hidden_state.scales)
    if len(raw) != num_rows * WIRE_DTYPE.itemsize:
        raise TensorError(
            "scales",
            f"holds {len(raw)} bytes; {num_rows} rows need {num_rows * WIRE_DTYPE.itemsize} bytes",
        )
    return np.frombuffer(raw, dtype=WIRE_DTYPE)


def _decode_base64(field: str, data: str) -> bytes:
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise TensorError(field, f"is not base64: {error}") from error
