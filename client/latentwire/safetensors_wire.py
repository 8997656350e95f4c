"""Answers and requests as safetensors files: float32 tensors, and the other fields as metadata.

The format is eight bytes of length, a JSON header and the raw values, so reading and writing it
takes these few lines instead of a dependency with compiled code. Its description:
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latentwire.constants import MAX_NAME_CHARS
from latentwire.errors import ProtocolError
from latentwire.protocol import PlanLatentResponse
from latentwire.strict_json import RepeatedKeyError, load_json
from latentwire.tensors import WIRE_DTYPE

_LENGTH = struct.Struct("<Q")
_TENSOR, _RESPONSE, _METADATA = "hidden_state", "response", "__metadata__"
_FORMAT = "format"
# Fields of a request whose metadata may be the text itself; all others are JSON.
_TEXT_FIELDS = frozenset(
    {
        "task",
        "task_id",
        "system",
        "prompt_template",
        "chat_template",
        "date",
        "step_bridge",
        "plan",
    }
)

# Sizes beyond it are refused even if the other one is 0.
_MAX_SIZE = 2**31 - 1

Matrix = npt.NDArray[np.float32]


class _Place(NamedTuple):
    """Where a tensor is: bytes `start` to `end` of the values, as `[rows, width]`."""

    start: int
    end: int
    rows: int
    width: int


def pack(response: PlanLatentResponse, hidden_state: npt.NDArray[np.float32]) -> bytes:
    """Return the file.

    Args:
        response: its `hidden_state.data` is left empty.
        hidden_state: `[rows, hidden_size]` float32.
    """
    return _file({_RESPONSE: response.model_dump_json()}, {_TENSOR: hidden_state})


def _file(metadata: Mapping[str, str], tensors: Mapping[str, Matrix]) -> bytes:
    header: dict[str, Any] = {_METADATA: {_FORMAT: "pt", **metadata}}
    values, end = [], 0
    for name, matrix in tensors.items():
        raw = np.ascontiguousarray(matrix, dtype=WIRE_DTYPE)
        start, end = end, end + raw.nbytes
        header[name] = {"dtype": "F32", "shape": list(raw.shape), "data_offsets": [start, end]}
        values.append(raw.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    # The values start at a multiple of eight, so that readers can use them in place.
    text += b" " * (-len(text) % 8)
    return b"".join([_LENGTH.pack(len(text)), text, *values])


def pack_request(body: Mapping[str, Any], tensors: Mapping[str, Matrix]) -> bytes:
    """Return a request as a file.

    Args:
        body: fields as JSON values; a latent's `hidden_state` is the name of a tensor.
        tensors: `[rows, width]` float32 each.
    """
    return _file({name: json.dumps(value) for name, value in body.items()}, tensors)


def unpack_request(content: bytes) -> tuple[dict[str, Any], dict[str, Matrix]]:
    """Read a request from a file.

    Returns:
        The fields as JSON values, not validated; and the tensors, read-only `[rows, width]` float32
        views of `content`, aligned copies where values are not at a multiple of four.

    Raises:
        RepeatedKeyError: when an object of its JSON has a key more than once.
        ValueError: when the file is malformed; the text says how.
    """
    if len(content) < _LENGTH.size:
        raise ValueError("the file has no header")
    (length,) = _LENGTH.unpack_from(content)
    base = _LENGTH.size + length
    if base > len(content):
        raise ValueError("the header is longer than the file")
    header = _json("the header is", content[_LENGTH.size : base])
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise ValueError("the metadata are not a JSON object")
    fields = {name: _field(name, text) for name, text in metadata.items() if name != _FORMAT}
    data = memoryview(content)[base:]
    places = {name: _place(name, entry, len(data)) for name, entry in header.items()}
    # Before any value is copied: tensors that share bytes could take any amount of memory.
    _check_cover(places.values(), len(data))
    return fields, {name: _matrix(place, data) for name, place in places.items()}


def _field(name: str, text: object) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"the metadata of {name!r} are not text")
    if name in _TEXT_FIELDS and not _is_json_text(text):
        return None if text == "null" else text
    return _json(f"the metadata of {name!r} are", text.encode())


def _is_json_text(text: str) -> bool:
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _json(subject: str, text: bytes) -> Any:
    try:
        return load_json(text.decode())
    except RepeatedKeyError:
        raise
    except ValueError as error:
        raise ValueError(f"{subject} not JSON in UTF-8") from error


def _place(name: str, entry: object, num_bytes: int) -> _Place:
    """Return where a tensor is among the values, of which there are so many bytes."""
    shown = repr(name[:MAX_NAME_CHARS])
    match entry:
        case {"dtype": "F32", "shape": [int(rows), int(width)], "data_offsets": [int(a), int(b)]}:
            is_sized = 0 <= rows <= _MAX_SIZE and 0 <= width <= _MAX_SIZE
            if (
                not is_sized
                or b - a != rows * width * WIRE_DTYPE.itemsize
                or not 0 <= a <= num_bytes
            ):
                raise ValueError(
                    f"the tensor {shown} has the shape [{rows}, {width}] and the bytes {a} to {b} "
                    f"of {num_bytes}"
                )
            return _Place(a, b, rows, width)
    raise ValueError(f"the tensor {shown} must have the dtype F32 and two dimensions")


def _check_cover(places: Iterable[_Place], num_bytes: int) -> None:
    """Check that each byte belongs to one tensor, as the format demands."""
    end = 0
    for place in sorted(places):
        if place.start != end:
            raise ValueError(
                f"the tensors overlap or leave a gap: one ends at byte {end}, and the next one "
                f"begins at byte {place.start}"
            )
        end = place.end
    if end != num_bytes:
        raise ValueError(f"the tensors end at byte {end} of {num_bytes}")


def _matrix(place: _Place, data: memoryview) -> Matrix:
    values = np.frombuffer(data[place.start : place.end], dtype=WIRE_DTYPE)
    return _aligned(values).reshape(place.rows, place.width)


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
