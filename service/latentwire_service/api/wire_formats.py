"""The forms of an answer, and which of them a caller's `Accept` asks for."""

from __future__ import annotations

import enum

import numpy as np
import pyarrow as pa

from latentwire.constants import (
    ARROW_STREAM_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.safetensors_wire import pack
from latentwire_service.api.rendering import Asked, plan_response, render_plan
from latentwire_service.model_service import Plan

# The columns of the datasets that `latentwire collect` makes.
ARROW_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("plan", pa.string()),
        pa.field("hidden_state", pa.list_(pa.list_(pa.float32()))),
    ]
)
# Key of the schema's metadata that holds the answer's other fields, as JSON.
ARROW_RESPONSE_KEY = b"latentwire.response"


class WireFormat(enum.Enum):
    """A form of an answer; the value is its media type."""

    JSON = JSON_MEDIA_TYPE
    ARROW = ARROW_STREAM_MEDIA_TYPE
    SAFETENSORS = SAFETENSORS_MEDIA_TYPE


def negotiate(accept: str) -> WireFormat:
    """Return the form that an `Accept` header likes best; JSON where it names none of them."""
    best, best_quality = WireFormat.JSON, 0.0
    known = {wire.value: wire for wire in WireFormat}
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        wire, quality = known.get(media_type), _quality(parameters)
        if wire is not None and quality > best_quality:
            best, best_quality = wire, quality
    return best


def render(wire: WireFormat, plan: Plan, asked: Asked) -> bytes:
    """Return an answer in a form. A large latent takes milliseconds: not on the event loop."""
    match wire:
        case WireFormat.JSON:
            return render_plan(plan, asked)
        case WireFormat.SAFETENSORS:
            return pack(plan_response(plan, asked), plan.completion.hidden_state)
        case WireFormat.ARROW:
            return _render_arrow(plan, asked)


def _render_arrow(plan: Plan, asked: Asked) -> bytes:
    """Return an Arrow IPC stream of one record batch with one row."""
    hidden_state = plan.completion.hidden_state
    rows, width = hidden_state.shape
    values = pa.array(hidden_state.reshape(-1))
    steps = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)
    latents = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), steps)
    response = plan_response(plan, asked).model_dump_json()
    schema = ARROW_SCHEMA.with_metadata({ARROW_RESPONSE_KEY: response.encode()})
    columns = [
        pa.array([asked.body.task], pa.string()),
        pa.array([asked.body.task_id], pa.string()),
        pa.array([plan.completion.text], pa.string()),
        latents,
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0
    return 1.0
