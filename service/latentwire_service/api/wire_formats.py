"""The formats of an answer, and the one that an `Accept` header prefers."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from starlette.exceptions import HTTPException

from latentwire.answer_form import ARRAY_PREFIX
from latentwire.constants import (
    ARROW_STREAM_MEDIA_TYPE,
    EVENT_STREAM_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.number_formats import EncodedRows, NumberFormat
from latentwire.safetensors_wire import pack
from latentwire_service.api.rendering import (
    AnswerContext,
    Tensors,
    answer_tensors,
    plan_response,
    render_plan,
)
from latentwire_service.model_service import Plan

# The columns of a dataset, as `latentwire collect` writes them.
_TEXT_COLUMNS = [pa.field(name, pa.string()) for name in ("task", "task_id", "plan")]
# Values of a matrix in a column: bfloat16 is its bits, int4 two codes per byte.
_VALUE_TYPES: Mapping[NumberFormat, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
    "int8": pa.int8(),
    "int4": pa.uint8(),
}
# Key of the schema's metadata whose value is the JSON of the answer's other fields.
ARROW_RESPONSE_KEY = b"latentwire.response"
# Begins the columns of a compressor's further arrays.
ARRAY_COLUMN_PREFIX = "hidden_state_comp__"


class WireFormat(enum.Enum):
    """A format of an answer; the value is its media type."""

    JSON = JSON_MEDIA_TYPE
    ARROW = ARROW_STREAM_MEDIA_TYPE
    SAFETENSORS = SAFETENSORS_MEDIA_TYPE


def negotiate(accept: str) -> WireFormat:
    """Return the format that an `Accept` header prefers; JSON if it has no preference.

    Raises:
        HTTPException: 406, the header excludes all formats.
    """
    entries = list(_media_ranges(accept))
    if not entries:
        return WireFormat.JSON
    # `max` keeps the first of equals, in the order in which the header names the formats.
    named = [wire.value for wire in WireFormat]
    order = [name for name, _ in entries if name in named] + named
    best = max(order, key=lambda name: _quality_of(name, entries))
    if _quality_of(best, entries) == 0:
        raise HTTPException(
            406,
            f"Accept allows none of {', '.join(named)}; {EVENT_STREAM_MEDIA_TYPE} is the answer to "
            "a request with stream: true",
        )
    return WireFormat(best)


def check_stream_is_accepted(accept: str) -> None:
    """Refuse a request for a stream whose `Accept` header excludes the stream.

    A caller that names JSON gets the stream: its events hold JSON, and clients that name JSON in
    every request are common.

    Raises:
        HTTPException: 406.
    """
    entries = list(_media_ranges(accept))
    is_named = any(name == JSON_MEDIA_TYPE and quality > 0 for name, quality in entries)
    if entries and not is_named and _quality_of(EVENT_STREAM_MEDIA_TYPE, entries) == 0:
        raise HTTPException(
            406,
            f"Accept excludes {EVENT_STREAM_MEDIA_TYPE}, which is the answer to a request with "
            "stream: true",
        )


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Yield each media range with its quality; malformed ones are left out."""
    for entry in accept.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = _quality(parameters)
        if "/" in name and quality is not None:
            yield name, quality


def _quality_of(media_type: str, entries: Sequence[tuple[str, float]]) -> float:
    """Return the quality of a media type: that of the most specific range which includes it."""
    for wanted in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        qualities = [quality for name, quality in entries if name == wanted]
        if qualities:
            return max(qualities)
    return 0.0


def render(wire: WireFormat, plan: Plan, context: AnswerContext) -> bytes:
    """Return an answer in a format.

    A large latent takes milliseconds: call this off the event loop.

    Raises:
        InvalidParamsError: a value of a latent does not fit the number format.
    """
    if wire is WireFormat.JSON:
        return render_plan(plan, context)
    tensors = answer_tensors(plan, context)
    if wire is WireFormat.SAFETENSORS:
        return pack(plan_response(plan, context, tensors), tensors)
    return _render_arrow(plan, context, tensors)


def _render_arrow(plan: Plan, context: AnswerContext, tensors: Tensors) -> bytes:
    """Return an Arrow IPC stream of one record batch with one row."""
    fields = list(_TEXT_COLUMNS)
    texts = (context.body.task, context.body.task_id, plan.completion.text)
    columns: list[pa.Array] = [pa.array([text], pa.string()) for text in texts]
    for name, tensor in tensors.items():
        column = name.replace(ARRAY_PREFIX, ARRAY_COLUMN_PREFIX)
        for suffix, array in _matrix_columns(tensor).items():
            fields.append(pa.field(column + suffix, array.type))
            columns.append(array)
    response = plan_response(plan, context, tensors).model_dump_json()
    schema = pa.schema(fields, {ARROW_RESPONSE_KEY: response.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


def _matrix_columns(tensor: EncodedRows) -> dict[str, pa.Array]:
    """Return the column of a matrix, and of its scales if there are any, by suffix of the name."""
    rows, width = tensor.values.shape
    values = pa.array(tensor.values.reshape(-1), _VALUE_TYPES[tensor.format])
    steps = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)
    columns = {"": pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), steps)}
    if tensor.scales is not None:
        columns["_scale"] = pa.array([tensor.scales], pa.list_(pa.float32()))
    return columns


def _quality(parameters: list[str]) -> float | None:
    """Return the quality that the parameters state, 1 by default; None if it is malformed."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
            return quality if 0 <= quality <= 1 else None
    return 1.0
