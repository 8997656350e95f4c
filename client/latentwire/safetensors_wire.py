"""A plan as a safetensors file: one float32 tensor, and the answer's other fields as metadata.

The format is eight bytes of length, a JSON header and the raw values; reading and writing it takes
no library. https://github.com/huggingface/safetensors describes it.
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
    # The values begin at a multiple of eight, so that readers may map them in place.
    header += b" " * (-len(header) % 8)
    return b"".join([_LENGTH.pack(len(header)), header, raw.tobytes()])


def unpack(content: bytes) -> tuple[PlanLatentResponse, npt.NDArray[np.float32]]:
    """Read the file: the response, and the hidden state as a read-only view of its bytes.

    Raises:
        ProtocolError: it is not as `pack` makes it.
    """
    try:
        (length,) = _LENGTH.unpack_from(content)
        header = json.loads(content[_LENGTH.size : _LENGTH.size + length])
        response = PlanLatentResponse.model_validate_json(header[_METADATA][_RESPONSE])
        tensor = header[_TENSOR]
        rows, width = (int(size) for size in tensor["shape"])
        start, end = (_LENGTH.size + length + int(offset) for offset in tensor["data_offsets"])
        is_right = tensor["dtype"] == "F32" and (rows, width) == response.hidden_state.shape
        values = np.frombuffer(content[start:end], dtype=WIRE_DTYPE)
        matrix = values.reshape(rows, width)
    # Among them json's and pydantic's errors, which are ValueErrors.
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ProtocolError(f"the answer is no safetensors file of a plan: {error}") from error
    if not is_right or end != len(content):
        raise ProtocolError("the answer's tensor is not the one that its fields describe")
    return response, matrix
