"""Plans as chat completions and chunks. Knows the wire form, not how bytes are sent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentwire.latent import latent_info
from latentwire.number_formats import encode_rows
from latentwire.protocol import ErrorBody
from latentwire_service.api.openai.error_form import openai_error
from latentwire_service.api.rendering import encoded_row, with_data
from latentwire_service.engine.backend import Completion, FinishReason, Step
from latentwire_service.model_service import Plan

_END = b"data: [DONE]\n\n"
# OpenAI's clients know no others. A plan that was to have no tokens has ended as it should.
_FINISH_REASONS: Mapping[FinishReason, str] = {FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class ChatContext:
    """Facts that an answer states in addition to its plan.

    Attributes:
        answer_id: id of the answer.
        model: id of the model.
        revision: revision of the model.
        engine: name and version of the engine.
        fingerprint: changes with whatever changes answers.
        has_latent: whether the answer holds the latent.
        has_usage: whether a stream states its usage.
        created: seconds since 1970.
    """

    answer_id: str
    model: str
    revision: str | None
    engine: str
    fingerprint: str
    has_latent: bool
    has_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))


def render_completion(plan: Plan, context: ChatContext) -> bytes:
    """Return the JSON of a chat completion."""
    completion = plan.completion
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if context.has_latent:
        hidden_state = {"data": "", **_form_of(completion)}
        message["latent"] = {
            "type": "latent",
            "hidden_state": hidden_state,
            "latent": _declaration(plan, context),
        }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _finish_reason(completion),
    }
    answer = {
        **_head("chat.completion", context),
        "choices": [choice],
        "usage": _usage(completion),
        **_repeatable(plan),
    }
    rendered = _json(answer)
    if not context.has_latent:
        return rendered
    return with_data(rendered, [encode_rows(completion.hidden_state, "float32")])


class Chunks:
    """The events of a stream: chunks, and `[DONE]`.

    Args:
        context: facts about the request and the model.
    """

    def __init__(self, context: ChatContext) -> None:
        self._context = context
        self._is_begun = False

    def steps(self, steps: list[Step]) -> bytes:
        """Return a chunk for each token or row that has something to say."""
        deltas = filter(None, map(self._delta, steps))
        return b"".join([self._beginning(), *(self._chunk(delta) for delta in deltas)])

    def done(self, plan: Plan) -> bytes:
        """Return the chunk with the finish reason, then the usage if it is wanted, and the end."""
        delta: dict[str, Any] = {}
        if self._context.has_latent:
            delta["latent"] = {
                "hidden_state": _form_of(plan.completion),
                "latent": _declaration(plan, self._context),
            }
        last = self._chunk(delta, _finish_reason(plan.completion), **_repeatable(plan))
        events = [self._beginning(), last]
        if self._context.has_usage:
            head = _head("chat.completion.chunk", self._context)
            events.append(_event({**head, "choices": [], "usage": _usage(plan.completion)}))
        return b"".join([*events, _END])

    def error(self, body: ErrorBody) -> bytes:
        """Return the error, which is the last event."""
        return b"data: " + openai_error(body)[1] + b"\n\n"

    def takes_long(self, _item: list[Step] | Plan) -> bool:
        """Whether making the events could hold up the event loop: a row in base64 does not."""
        return False

    def _beginning(self) -> bytes:
        if self._is_begun:
            return b""
        self._is_begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _delta(self, step: Step) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": step.text} if step.text else {}
        row = encoded_row(step) if self._context.has_latent else None
        if row is not None:
            delta["latent"] = {"index": step.index, "row": row}
        return delta

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, **members: Any
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if self._context.has_usage:
            members["usage"] = None
        head = _head("chat.completion.chunk", self._context)
        return _event({**head, "choices": [choice], **members})


def _head(kind: str, context: ChatContext) -> dict[str, Any]:
    return {
        "id": context.answer_id,
        "object": kind,
        "created": context.created,
        "model": context.model,
        "system_fingerprint": context.fingerprint,
    }


def _finish_reason(completion: Completion) -> str:
    return _FINISH_REASONS.get(completion.finish_reason, "stop")


def _form_of(completion: Completion) -> dict[str, Any]:
    """Describe the rows, without their data."""
    return {
        "dtype": "float32",
        "byteorder": "little",
        "shape": list(completion.hidden_state.shape),
    }


def _declaration(plan: Plan, context: ChatContext) -> dict[str, Any]:
    num_steps = plan.completion.num_latent_steps
    info = latent_info(
        context.model, context.revision, latent_steps=num_steps, engine=context.engine
    )
    return info.model_dump()


def _usage(completion: Completion) -> dict[str, int]:
    num_new = len(completion.token_ids)
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": num_new,
        "total_tokens": completion.prompt_tokens + num_new,
        "latent_rows": len(completion.hidden_state),
        "latent_steps": completion.num_latent_steps,
    }


def _repeatable(plan: Plan) -> dict[str, Any]:
    """Return what a request needs to repeat the answer."""
    return {"seed": plan.seed, "date": None if plan.day is None else plan.day.isoformat()}


def _event(data: dict[str, Any]) -> bytes:
    # JSON escapes line feeds inside strings, so one line holds all the data.
    return b"data: " + _json(data) + b"\n\n"


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
