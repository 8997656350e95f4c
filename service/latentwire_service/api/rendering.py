"""Plans and tokens to bytes. Knows the wire formats, not how bytes are sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latentwire.answer_form import ARRAY_PREFIX, COMPRESSED, HIDDEN_STATE
from latentwire.number_formats import (
    DEFAULT_ROTATION,
    EncodedRows,
    NumberFormat,
    NumberFormatError,
    Rows,
    encode_rows,
)
from latentwire.protocol import (
    AppliedCompressor,
    ErrorBody,
    HiddenState,
    PlanLatentRequest,
    PlanLatentResponse,
    StreamDone,
    StreamStep,
    Timings,
    Usage,
    latent_info,
)
from latentwire.rotation import MAX_ROTATED_WIDTH
from latentwire.tensors import encode_base64, encode_values, wire_tensor
from latentwire_service.compression.pool import Compressed
from latentwire_service.engine.backend import Completion, Step
from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.model_service import Plan

Tensors = Mapping[str, EncodedRows]
"""The latents of an answer, named and ordered as by `latentwire.answer_form.named_latents`."""


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """Facts that an answer states in addition to its plan: fields of the request, and the model.

    Attributes:
        body: body of the request.
        k: rows that the request keeps; None: all.
        model: id of the model.
        revision: revision of the model.
        engine: name and version of the engine.
        has_hidden_state: whether the answer holds the full latent.
        dtype: number format of the answer's latents.
    """

    body: PlanLatentRequest
    k: int | None
    model: str
    revision: str | None
    engine: str
    has_hidden_state: bool = True
    dtype: NumberFormat = "float32"


def answer_tensors(plan: Plan, context: AnswerContext) -> Tensors:
    """Return the latents of an answer in its number format.

    Raises:
        InvalidParamsError: a value does not fit the number format.
    """
    tensors = _compressed_tensors(plan.compressed, context)
    if not context.has_hidden_state:
        return tensors
    full = _encoded(HIDDEN_STATE, plan.completion.hidden_state, context.dtype)
    return {HIDDEN_STATE: full, **tensors}


def _compressed_tensors(compressed: Compressed | None, context: AnswerContext) -> Tensors:
    if compressed is None:
        return {}
    # The further arrays may hold places or sizes, which a shorter format would change.
    arrays = {
        ARRAY_PREFIX + name: encode_rows(array, "float32")
        for name, array in sorted(compressed.arrays.items())
    }
    return {COMPRESSED: _encoded(COMPRESSED, compressed.rows, context.dtype), **arrays}


def _encoded(
    name: str, rows: Rows, dtype: NumberFormat, places: Sequence[int] | None = None
) -> EncodedRows:
    """Return rows in a number format.

    Args:
        name: of the latent, for the message of an error.
        rows: `[n, width]` float32.
        dtype: the number format.
        places: of the rows in the latent; None: from 0 on.

    Raises:
        InvalidParamsError: a value does not fit the number format; the message names its row.
    """
    rotation = DEFAULT_ROTATION if rows.shape[1] <= MAX_ROTATED_WIDTH else None
    try:
        return encode_rows(rows, dtype, rotation=rotation)
    except NumberFormatError as error:
        row = error.row if places is None else places[error.row]
        reason = str(error).removeprefix(f"row {error.row} ")
        message = f"{dtype} cannot hold {name}: row {row} {reason}"
        raise InvalidParamsError("dtype", message) from error


def plan_response(plan: Plan, context: AnswerContext, tensors: Tensors) -> PlanLatentResponse:
    """Return the answer of a plan; the `data` of its latents is empty."""
    completion = plan.completion
    logprobs = completion.token_logprobs
    own = tensors.get(HIDDEN_STATE)
    return PlanLatentResponse(
        **_answer_fields(plan, context),
        **_compressed_fields(plan.compressed, tensors),
        task=context.body.task,
        plan=completion.text,
        hidden_state=None if own is None else wire_tensor(own),
        token_ids=completion.token_ids,
        logprob=None if logprobs is None else math.fsum(logprobs),
        token_logprobs=None if logprobs is None else list(logprobs),
    )


def _compressed_fields(compressed: Compressed | None, tensors: Tensors) -> dict[str, Any]:
    """Return the fields of a compressed latent, with empty `data`."""
    if compressed is None:
        return {}
    compressor = compressed.compressor
    return {
        "hidden_state_comp": wire_tensor(tensors[COMPRESSED]),
        "hidden_state_comp_arrays": {
            name: wire_tensor(tensors[ARRAY_PREFIX + name]) for name in sorted(compressed.arrays)
        },
        "compressor": AppliedCompressor(
            name=compressor.name,
            kind=compressor.kind,
            content_hash=compressor.content_hash,
            parameters=dict(compressor.parameters),
            output=compressor.output,
        ),
    }


def render_plan(plan: Plan, context: AnswerContext) -> bytes:
    """Return the JSON of a `PlanLatentResponse`.

    Raises:
        InvalidParamsError: as `answer_tensors`.
    """
    tensors = answer_tensors(plan, context)
    answer = plan_response(plan, context, tensors).model_dump_json().encode()
    return with_data(answer, tensors.values())


def with_data(answer: bytes, tensors: Iterable[EncodedRows]) -> bytes:
    """Fill in the values of latents whose `data` is empty.

    The base64 texts are inserted afterwards, because a serializer would copy and scan their
    megabytes. `"data":""` cannot occur before them: quotes inside JSON strings are escaped, and the
    parameters of a compressor come later.

    Args:
        answer: compact JSON.
        tensors: in the order of the answer.
    """
    pieces = []
    for tensor in tensors:
        before, _, answer = answer.partition(b'"data":""')
        pieces += [before, b'"data":"', encode_values(tensor.values), b'"']
    return b"".join([*pieces, answer])


def render_steps(steps: Sequence[Step], context: AnswerContext) -> bytes:
    """Return a `step` event for each generated token.

    Raises:
        InvalidParamsError: as `answer_tensors`.
    """
    rows: Mapping[int, str | HiddenState] = {}
    if context.has_hidden_state:
        rows = _encoded_rows(steps, context.dtype)
    return b"".join(_event("step", _stream_step(each, rows.get(each.index))) for each in steps)


def render_done(plan: Plan, context: AnswerContext, streamed_text: str) -> bytes:
    """Return the `done` event.

    Args:
        plan: the finished plan.
        context: facts about the request and the model.
        streamed_text: the text of all `step` events; the event holds the plan only if it differs.

    Raises:
        InvalidParamsError: as `answer_tensors`.
    """
    completion = plan.completion
    tensors = _compressed_tensors(plan.compressed, context)
    done = StreamDone(
        **_answer_fields(plan, context),
        **_compressed_fields(plan.compressed, tensors),
        shape=(_num_sent(completion, context), completion.hidden_state.shape[1]),
        plan=None if streamed_text == completion.text else completion.text,
    )
    return _event("done", with_data(done.model_dump_json().encode(), tensors.values()))


def render_error(body: ErrorBody) -> bytes:
    """Return the `error` event, which is the last one."""
    return _event("error", body.model_dump_json(exclude_none=True).encode())


def _answer_fields(plan: Plan, context: AnswerContext) -> dict[str, Any]:
    """Return the fields of `AnswerFields`, which every form of an answer has."""
    completion = plan.completion
    return {
        "id": plan.plan_id,
        "model": context.model,
        "task_id": context.body.task_id,
        "k": context.k,
        "latent": latent_info(
            context.model,
            context.revision,
            latent_steps=completion.num_latent_steps,
            engine=context.engine,
        ),
        "finish_reason": completion.finish_reason.value,
        "seed": plan.seed,
        "date": None if plan.day is None else plan.day.isoformat(),
        "usage": Usage(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.token_ids),
            latent_rows=_num_sent(completion, context),
            latent_steps=completion.num_latent_steps,
        ),
        "timings": Timings(
            queue_ms=_milliseconds(completion.queue_s),
            prefill_ms=_milliseconds(completion.prefill_s),
            decode_ms=_milliseconds(completion.decode_s),
        ),
    }


def _num_sent(completion: Completion, context: AnswerContext) -> int:
    return len(completion.hidden_state) if context.has_hidden_state else 0


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _stream_step(step: Step, row: str | HiddenState | None) -> bytes:
    sent = StreamStep(index=step.index, token_id=step.token_id, text=step.text, row=row)
    return sent.model_dump_json().encode()


def _encoded_rows(steps: Sequence[Step], dtype: NumberFormat) -> dict[int, str | HiddenState]:
    """Return the rows of steps for their events, by index; only of steps that have one."""
    rows = {step.index: step.row for step in steps if step.row is not None}
    if dtype == "float32":
        return {index: encode_base64(row[None]).decode() for index, row in rows.items()}
    if not rows:
        return {}
    # Together: of a single row, most of the time goes into the calls.
    encoded = _encoded(HIDDEN_STATE, np.stack([*rows.values()]), dtype, list(rows))
    sent: dict[int, str | HiddenState] = {}
    for place, index in enumerate(rows):
        one = slice(place, place + 1)
        scales = None if encoded.scales is None else encoded.scales[one]
        row = replace(encoded, values=encoded.values[one], scales=scales)
        sent[index] = wire_tensor(row, encode_values(row.values).decode())
    return sent


def encoded_row(step: Step) -> str | None:
    """Return base64 of a step's row in float32; None if the request does not keep it."""
    return None if step.row is None else encode_base64(step.row[None]).decode()


def _event(name: str, data: bytes) -> bytes:
    # JSON escapes line feeds inside strings, so one line holds all the data.
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
