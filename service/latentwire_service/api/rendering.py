"""Plans and tokens to bytes. Knows the wire formats, not how bytes are sent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latentwire.protocol import (
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
from latentwire.tensors import encode_base64
from latentwire_service.engine.backend import Completion, Step
from latentwire_service.model_service import Plan


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """Facts that an answer states in addition to its plan: fields of the request, and the model.

    Attributes:
        body: body of the request.
        k: rows that the request keeps; None: all.
        model: id of the model.
        revision: revision of the model.
    """

    body: PlanLatentRequest
    k: int | None
    model: str
    revision: str | None


def plan_response(plan: Plan, context: AnswerContext) -> PlanLatentResponse:
    """Return the answer of a plan with an empty `hidden_state.data`."""
    completion = plan.completion
    logprobs = completion.token_logprobs
    return PlanLatentResponse(
        **_answer_fields(plan, context),
        task=context.body.task,
        plan=completion.text,
        hidden_state=HiddenState(data="", shape=_shape(completion)),
        token_ids=completion.token_ids,
        logprob=None if logprobs is None else math.fsum(logprobs),
        token_logprobs=None if logprobs is None else list(logprobs),
    )


def render_plan(plan: Plan, context: AnswerContext) -> bytes:
    """Return the JSON of a `PlanLatentResponse`."""
    return with_rows(plan_response(plan, context).model_dump_json().encode(), plan.completion)


def with_rows(answer: bytes, completion: Completion) -> bytes:
    """Fill in the rows of an answer whose `hidden_state.data` is empty.

    The base64 text is inserted afterwards, because a serializer would copy and scan its megabytes.
    `"data":""` cannot occur earlier, because quotes inside JSON strings are escaped.

    Args:
        answer: compact JSON.
        completion: has the rows.
    """
    before, _, after = answer.partition(b'"data":""')
    data = encode_base64(completion.hidden_state)
    return b"".join([before, b'"data":"', data, b'"', after])


def render_steps(steps: Iterable[Step]) -> bytes:
    """Return a `step` event for each generated token."""
    return b"".join(_event("step", _stream_step(step).model_dump_json()) for step in steps)


def render_done(plan: Plan, context: AnswerContext, streamed_text: str) -> bytes:
    """Return the `done` event.

    Args:
        plan: the finished plan.
        context: facts about the request and the model.
        streamed_text: the text of all `step` events; the event holds the plan only if it differs.
    """
    completion = plan.completion
    done = StreamDone(
        **_answer_fields(plan, context),
        shape=_shape(completion),
        plan=None if streamed_text == completion.text else completion.text,
    )
    return _event("done", done.model_dump_json())


def render_error(body: ErrorBody) -> bytes:
    """Return the `error` event, which is the last one."""
    return _event("error", body.model_dump_json(exclude_none=True))


def _answer_fields(plan: Plan, context: AnswerContext) -> dict[str, Any]:
    """Return the fields of `AnswerFields`, which every form of an answer has."""
    completion = plan.completion
    return {
        "id": plan.plan_id,
        "model": context.model,
        "task_id": context.body.task_id,
        "k": context.k,
        "latent": latent_info(
            context.model, context.revision, latent_steps=completion.num_latent_steps
        ),
        "finish_reason": completion.finish_reason.value,
        "seed": plan.seed,
        "date": None if plan.day is None else plan.day.isoformat(),
        "usage": Usage(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.token_ids),
            latent_rows=len(completion.hidden_state),
            latent_steps=completion.num_latent_steps,
        ),
        "timings": Timings(
            queue_ms=_milliseconds(completion.queue_s),
            prefill_ms=_milliseconds(completion.prefill_s),
            decode_ms=_milliseconds(completion.decode_s),
        ),
    }


def _shape(completion: Completion) -> tuple[int, int]:
    rows, width = completion.hidden_state.shape
    return rows, width


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _stream_step(step: Step) -> StreamStep:
    return StreamStep(
        index=step.index, token_id=step.token_id, text=step.text, row=encoded_row(step)
    )


def encoded_row(step: Step) -> str | None:
    """Return base64 of a step's row; None if the request does not keep it."""
    return None if step.row is None else encode_base64(step.row[None]).decode()


def _event(name: str, data: str) -> bytes:
    # JSON escapes line feeds inside strings, so one line holds all the data.
    return f"event: {name}\ndata: {data}\n\n".encode()
