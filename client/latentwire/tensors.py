"""Hidden states to bytes and back: the one place that knows dtype, shape and byte order."""

from __future__ import annotations

import binascii

import numpy as np
import numpy.typing as npt

from latentwire.errors import ProtocolError
from latentwire.latent import HiddenState

# Little-endian float32 is the wire's only dtype; on little-endian hosts it is the native one.
WIRE_DTYPE = np.dtype("<f4")
# base64 maps 3 bytes to 4 characters, so pieces of a multiple of 3 bytes join without padding.
# 48 KiB encodes in about 30 us, the longest time that one piece holds the GIL.
_PIECE_BYTES = 48 * 1024


def encode_base64(matrix: npt.NDArray[np.float32]) -> bytes:
    """Encode a float32 matrix as padded base64 of its C-order little-endian bytes.

    Args:
        matrix: `[rows, hidden_size]` float32, any strides.

    Returns:
        ASCII base64. It is encoded in pieces, so that a large latent does not keep the GIL from the
        event loop's thread.
    """
    raw = np.ascontiguousarray(matrix, dtype=WIRE_DTYPE).reshape(-1).view(np.uint8).data
    pieces = (
        binascii.b2a_base64(raw[start : start + _PIECE_BYTES], newline=False)
        for start in range(0, len(raw), _PIECE_BYTES)
    )
    return b"".join(pieces)


def encode_hidden_state(matrix: npt.NDArray[np.float32]) -> HiddenState:
    """Return a `[rows, hidden_size]` float32 matrix as a wire tensor."""
    rows, width = matrix.shape
    return HiddenState(data=encode_base64(matrix).decode("ascii"), shape=(rows, width))


def decode_row(data: str) -> npt.NDArray[np.float32]:
    """Decode base64 into a read-only `[hidden_size]` float32 view of its bytes.

    Raises:
        ProtocolError: when the data is not base64 or not a whole number of values.
    """
    raw = _decode_base64("row", data)
    if len(raw) % WIRE_DTYPE.itemsize:
        raise ProtocolError(
            f"row holds {len(raw)} bytes, which is not a whole number of float32 values"
        )
    return np.frombuffer(raw, dtype=WIRE_DTYPE)


def decode_hidden_state(hidden_state: HiddenState) -> npt.NDArray[np.float32]:
    """Decode a wire tensor into a read-only `[rows, hidden_size]` float32 view of its bytes.

    Raises:
        ProtocolError: when the data is not base64 or its size does not match the shape.
    """
    rows, width = hidden_state.shape
    raw = _decode_base64("hidden_state.data", hidden_state.data)
    if rows < 0 or width < 0 or len(raw) != rows * width * WIRE_DTYPE.itemsize:
        raise ProtocolError(
            f"hidden_state.data holds {len(raw)} bytes; shape [{rows}, {width}] float32 needs "
            f"{rows * width * WIRE_DTYPE.itemsize} bytes"
        )
    return np.frombuffer(raw, dtype=WIRE_DTYPE).reshape(rows, width)


def _decode_base64(name: str, data: str) -> bytes:
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{name} is not base64: {error}") from error
