"""A plan as a safetensors file: one float32 tensor, and the answer's other fields as metadata.

The format is eight bytes of length, a JSON header and the raw values, so reading and writing it
takes these few lines instead of a dependency with compiled code. Its description:
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import struct

import numpy as np
import numpy.typing as npt

from latentwire.errors import ProtocolError
from latentwire.protocol import PlanLatentResponse
from latentwire.tensors import WIRE_DTYPE

_LENGTH = struct.Struct("<Q")
_TENSOR, _RESPONSE, _METADATA = "hidden_state", "response", "__metadata__"


def pack(response: PlanLatentResponse, hidden_state: npt.NDArray[np.float32]) -> bytes:
    """Return the file.

    Args:
        response: its `hidden_state.data` is left empty.
        hidden_state: `[rows, hidden_size]` float32.
    """
    raw = np.ascontiguousarray(hidden_state, dtype=WIRE_DTYPE)
    tensor = {"dtype": "F32", "shape": list(raw.shape), "data_offsets": [0, raw.nbytes]}
    metadata = {"format": "pt", _RESPONSE: response.model_dump_json()}
    header = json.dumps({_METADATA: metadata, _TENSOR: tensor}, separators=(",", ":")).encode()
    # The values start at a multiple of eight, so that readers can use them in place.
    header += b" " * (-len(header) % 8)
    return b"".join([_LENGTH.pack(len(header)), header, raw.tobytes()])


def unpack(content: bytes) -> tuple[PlanLatentResponse, npt.NDArray[np.float32]]:
    """Read the file.

    Returns:
        The response, and the hidden state: a read-only `[rows, hidden_size]` float32 view of
        `content`. Nothing is copied, except values that do not start at a multiple of four, as
        other writers may place them: those become an aligned copy.

    Raises:
        ProtocolError: when the file is not as `pack` makes it.
    """
    try:
        (length,) = _LENGTH.unpack_from(content)
        base = _LENGTH.size + length
        header = json.loads(content[_LENGTH.size : base])
        response = PlanLatentResponse.model_validate_json(header[_METADATA][_RESPONSE])
        tensor = header[_TENSOR]
        rows, width = response.hidden_state.shape
        described = {
            "dtype": "F32",
            "shape": [rows, width],
            "data_offsets": [0, rows * width * WIRE_DTYPE.itemsize],
        }
        if tensor != described or base + tensor["data_offsets"][1] != len(content):
            raise ProtocolError("the answer's tensor is not the one that its fields describe")
        values = np.frombuffer(content, dtype=WIRE_DTYPE, count=rows * width, offset=base)
        return response, _aligned(values).reshape(rows, width)
    # Among them json's and pydantic's errors, which are ValueErrors.
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ProtocolError(f"the answer is not a safetensors file of a plan: {error}") from error


def _aligned(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if values.flags.aligned:
        return values
    copied = values.copy()
    copied.flags.writeable = False
    return copied
