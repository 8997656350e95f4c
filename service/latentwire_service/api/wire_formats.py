"""The formats of an answer, and the one that an `Accept` header prefers."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from starlette.exceptions import HTTPException

from latentwire.constants import (
    ARROW_STREAM_MEDIA_TYPE,
    EVENT_STREAM_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.safetensors_wire import pack
from latentwire_service.api.rendering import AnswerContext, plan_response, render_plan
from latentwire_service.model_service import Plan

# The columns of a dataset, as `latentwire collect` writes them.
ARROW_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("plan", pa.string()),
        pa.field("hidden_state", pa.list_(pa.list_(pa.float32()))),
    ]
)
# Key of the schema's metadata whose value is the JSON of the answer's other fields.
ARROW_RESPONSE_KEY = b"latentwire.response"


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
    """
    match wire:
        case WireFormat.JSON:
            return render_plan(plan, context)
        case WireFormat.SAFETENSORS:
            return pack(plan_response(plan, context), plan.completion.hidden_state)
        case WireFormat.ARROW:
            return _render_arrow(plan, context)


def _render_arrow(plan: Plan, context: AnswerContext) -> bytes:
    """Return an Arrow IPC stream of one record batch with one row."""
    hidden_state = plan.completion.hidden_state
    rows, width = hidden_state.shape
    values = pa.array(hidden_state.reshape(-1))
    steps = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)
    latents = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), steps)
    response = plan_response(plan, context).model_dump_json()
    schema = ARROW_SCHEMA.with_metadata({ARROW_RESPONSE_KEY: response.encode()})
    columns = [
        pa.array([context.body.task], pa.string()),
        pa.array([context.body.task_id], pa.string()),
        pa.array([plan.completion.text], pa.string()),
        latents,
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


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
