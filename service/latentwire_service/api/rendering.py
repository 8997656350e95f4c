"""Plans and steps to bytes. Knows the wire's formats, not how they are sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
from latentwire_service.engine.request import Completion, Step
from latentwire_service.model_service import Plan


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer repeats of its request, and who made it.

    Attributes:
        body: the request's.
        k: hidden rows asked for.
        model: id of the model.
        revision: of the model.
    """

    body: PlanLatentRequest
    k: int | None
    model: str
    revision: str | None


def plan_response(plan: Plan, asked: Asked) -> PlanLatentResponse:
    """Return a plan's answer with `hidden_state.data` left empty."""
    completion = plan.completion
    rows, width = completion.hidden_state.shape
    return PlanLatentResponse(
        id=plan.request_id,
        model=asked.model,
        task=asked.body.task,
        task_id=asked.body.task_id,
        plan=completion.text,
        k=asked.k,
        hidden_state=HiddenState(data="", shape=(rows, width)),
        latent=latent_info(asked.model, asked.revision),
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason.value,
        seed=plan.seed,
        usage=_usage(completion),
        timings=_timings(completion),
    )


def render_plan(plan: Plan, asked: Asked) -> bytes:
    """Return the JSON of a `PlanLatentResponse`.

    The base64 text is put in afterwards: passing megabytes through the model would copy and scan
    them. `"data":""` cannot occur earlier, because quotes inside JSON strings are escaped.
    """
    before, _, after = plan_response(plan, asked).model_dump_json().encode().partition(b'"data":""')
    data = encode_base64(plan.completion.hidden_state)
    return b"".join([before, b'"data":"', data, b'"', after])


def render_steps(steps: Iterable[Step]) -> bytes:
    """Return a `step` event for each step."""
    return b"".join(_event("step", _stream_step(step).model_dump_json()) for step in steps)


def render_done(plan: Plan, asked: Asked, streamed_text: str) -> bytes:
    """Return the `done` event.

    Args:
        plan: finished.
        asked: what the answer repeats.
        streamed_text: all that the steps said; the plan is repeated only if it is another text.
    """
    completion = plan.completion
    rows, width = completion.hidden_state.shape
    done = StreamDone(
        id=plan.request_id,
        model=asked.model,
        task_id=asked.body.task_id,
        k=asked.k,
        shape=(rows, width),
        latent=latent_info(asked.model, asked.revision),
        finish_reason=completion.finish_reason.value,
        seed=plan.seed,
        usage=_usage(completion),
        timings=_timings(completion),
        plan=None if streamed_text == completion.text else completion.text,
    )
    return _event("done", done.model_dump_json())


def render_error(body: ErrorBody) -> bytes:
    """Return the `error` event, after which nothing comes."""
    return _event("error", body.model_dump_json(exclude_none=True))


def _stream_step(step: Step) -> StreamStep:
    row = None if step.row is None else encode_base64(step.row[None]).decode()
    return StreamStep(index=step.index, token_id=step.token_id, text=step.text, row=row)


def _event(name: str, data: str) -> bytes:
    # JSON escapes line feeds inside of strings, so that one line holds it all.
    return f"event: {name}\ndata: {data}\n\n".encode()


def _usage(completion: Completion) -> Usage:
    return Usage(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=len(completion.token_ids),
        latent_steps=len(completion.hidden_state),
    )


def _timings(completion: Completion) -> Timings:
    return Timings(
        queue_ms=round(completion.queue_s * 1e3, 3),
        prefill_ms=round(completion.prefill_s * 1e3, 3),
        decode_ms=round(completion.decode_s * 1e3, 3),
    )
