"""Answers and requests as safetensors files: tensors, and the other fields as metadata.

The format is eight bytes of length, a JSON header and the raw values, so reading and writing it
takes these few lines instead of a dependency with compiled code. Its description:
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from latentwire.answer_form import COMPRESSED, HIDDEN_STATE, named_latents
from latentwire.constants import MAX_NAME_CHARS
from latentwire.errors import ProtocolError
from latentwire.number_formats import (
    VALUE_DTYPES,
    EncodedRows,
    NumberFormat,
    decode_rows,
    has_scales,
    stored_width,
)
from latentwire.protocol import HiddenState, PlanLatentResponse
from latentwire.strict_json import RepeatedKeyError, load_json
from latentwire.tensors import WIRE_DTYPE

LENGTH = struct.Struct("<Q")
"""Size of the header, before it."""
_RESPONSE, _METADATA = "response", "__metadata__"
_FORMAT = "format"
_SCALES = ".scales"
# bfloat16 has a name of its own; int4 is two codes per byte.
_DTYPE_NAMES: Mapping[NumberFormat, str] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "int4": "U8",
}
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


def pack(response: PlanLatentResponse, tensors: Mapping[str, EncodedRows]) -> bytes:
    """Return the file.

    Args:
        response: its latents' `data` is left empty. Their scales are tensors of the file, too.
        tensors: its latents by name.
    """
    entries: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        entries[name] = (_DTYPE_NAMES[tensor.format], tensor.values)
        if tensor.scales is not None:
            entries[name + _SCALES] = ("F32", tensor.scales)
    text = response.model_dump_json(
        exclude={name: {"scales"} for name in (HIDDEN_STATE, COMPRESSED)}
    )
    return _file({_RESPONSE: text}, entries)


def _file(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]
) -> bytes:
    """Return a file of tensors, each with the format's name for its dtype."""
    header: dict[str, Any] = {_METADATA: {_FORMAT: "pt", **metadata}}
    values, end = [], 0
    # Wide values first: then each is at a multiple of its own size, and is read in place.
    for name, (dtype, array) in sorted(tensors.items(), key=_narrowness):
        start, end = end, end + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        values.append(array.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    # The values start at a multiple of eight, so that readers can use them in place.
    text += b" " * (-len(text) % 8)
    return b"".join([LENGTH.pack(len(text)), text, *values])


def _narrowness(entry: tuple[str, tuple[str, npt.NDArray[Any]]]) -> int:
    return -entry[1][1].itemsize


def pack_request(body: Mapping[str, Any], tensors: Mapping[str, Matrix]) -> bytes:
    """Return a request as a file.

    Args:
        body: fields as JSON values; a latent's `hidden_state` is the name of a tensor.
        tensors: `[rows, width]` float32 each.
    """
    arrays = {name: np.ascontiguousarray(each, WIRE_DTYPE) for name, each in tensors.items()}
    return _file(
        {name: json.dumps(value) for name, value in body.items()},
        {name: ("F32", array) for name, array in arrays.items()},
    )


def unpack_request(content: bytes) -> tuple[dict[str, Any], dict[str, Matrix]]:
    """Read a request from a file.

    Returns:
        The fields as JSON values, not validated; and the tensors, read-only `[rows, width]` float32
        views of `content`, aligned copies where values are not at a multiple of four.

    Raises:
        RepeatedKeyError: when an object of its JSON has a key more than once.
        ValueError: when the file is malformed; the text says how.
    """
    if len(content) < LENGTH.size:
        raise ValueError("the file has no header")
    (length,) = LENGTH.unpack_from(content)
    base = LENGTH.size + length
    if base > len(content):
        raise ValueError("the header is longer than the file")
    header = _json("the header is", content[LENGTH.size : base])
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


def unpack(content: bytes | memoryview) -> tuple[PlanLatentResponse, dict[str, Matrix]]:
    """Read the file.

    Returns:
        The response, and its latents by name: `[rows, width]` float32, read-only. Latents that were
        sent as float32 are views of `content`. Nothing of them is copied, except values that do
        not start at a multiple of four, as other writers may place them: those become an aligned
        copy.

    Raises:
        ProtocolError: when the file is not as `pack` makes it.
    """
    try:
        (length,) = LENGTH.unpack_from(content)
        base = LENGTH.size + length
        header = from_json(bytes(content[LENGTH.size : base]))
        response = PlanLatentResponse.model_validate_json(header.pop(_METADATA)[_RESPONSE])
        described = named_latents(
            response.hidden_state, response.hidden_state_comp, response.hidden_state_comp_arrays
        )
        arrays = _arrays(header, _expected(described), memoryview(content)[base:])
        latents = {
            name: decode_rows(_encoded(name, sent, arrays)) for name, sent in described.items()
        }
        for rows in latents.values():
            rows.flags.writeable = False
        return response, latents
    # Among them json's and pydantic's errors, which are ValueErrors.
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ProtocolError(f"the answer is not a safetensors file of a plan: {error}") from error


def _expected(described: Mapping[str, HiddenState]) -> dict[str, tuple[NumberFormat, list[int]]]:
    """Return number format and shape of each tensor of the file."""
    tensors: dict[str, tuple[NumberFormat, list[int]]] = {}
    for name, sent in described.items():
        rows, width = sent.shape
        if not (0 <= rows <= _MAX_SIZE and 0 <= width <= _MAX_SIZE):
            raise ProtocolError(f"the answer's {name} has the shape [{rows}, {width}]")
        tensors[name] = (sent.dtype, [rows, stored_width(sent.dtype, width)])
        if has_scales(sent.dtype):
            tensors[name + _SCALES] = ("float32", [rows])
    return tensors


def _arrays(
    header: Mapping[str, Any],
    expected: Mapping[str, tuple[NumberFormat, list[int]]],
    data: memoryview,
) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of an answer, which must be those that its fields describe."""
    wrong = ProtocolError("the answer's tensors are not those that its fields describe")
    if header.keys() != expected.keys():
        raise wrong
    arrays, places = {}, []
    for name, (number_format, shape) in expected.items():
        dtype, num_values = VALUE_DTYPES[number_format], math.prod(shape)
        match header[name]:
            case {"dtype": stated, "shape": sizes, "data_offsets": [int(start), int(end)]} if (
                stated,
                sizes,
            ) == (
                _DTYPE_NAMES[number_format],
                shape,
            ) and 0 <= start <= end == start + num_values * dtype.itemsize <= len(data):
                places.append(_Place(start, end, 0, 0))
                arrays[name] = _aligned(np.frombuffer(data[start:end], dtype)).reshape(shape)
            case _:
                raise wrong
    try:
        _check_cover(places, len(data))
    except ValueError:
        raise wrong from None
    return arrays


def _encoded(name: str, sent: HiddenState, arrays: Mapping[str, npt.NDArray[Any]]) -> EncodedRows:
    return EncodedRows(
        sent.dtype, arrays[name], arrays.get(name + _SCALES), sent.shape[1], sent.rotation
    )


def _aligned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.flags.aligned:
        return values
    copied = values.copy()
    copied.flags.writeable = False
    return copied
