"""One HTTP request as a value: arguments of a client, checked, to method, path and body.

A pure function of its arguments. Nothing here sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from latentwire.constants import (
    EVENT_STREAM_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    REQUEST_ID_HEADER,
    REQUEST_ID_PATTERN,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.conversation import Message
from latentwire.errors import InvalidArgumentError, ProtocolError
from latentwire.latent import HiddenState
from latentwire.number_formats import NumberFormat
from latentwire.protocol import PlanLatentCall, fault_of
from latentwire.safetensors_wire import pack_request
from latentwire.sampling import ChatTemplate
from latentwire.tensors import decode_hidden_state
from latentwire.validation import describe

Wire = Literal["json", "safetensors"]
"""Form of an answer: base64 in JSON, or raw bytes, which are smaller and faster."""

# A service that does not know safetensors answers with JSON.
ACCEPT: Mapping[Wire, str | None] = {
    "json": None,
    "safetensors": f"{SAFETENSORS_MEDIA_TYPE}, {JSON_MEDIA_TYPE};q=0.5",
}
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)

MessageList = Sequence[Mapping[str, Any] | Message]
"""A conversation: each message has a role, and a content of text or of parts."""


class PlanOptions(TypedDict, total=False):
    """Optional fields of a plan request; `PlanLatentBody` holds their defaults and limits."""

    system: str | None
    prompt_template: str
    chat_template: ChatTemplate
    chat_template_kwargs: Mapping[str, str | int | float | bool | None] | None
    date: str | None
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: list[str]
    stop_token_ids: list[int] | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: dict[int, float] | None
    latent_steps: int
    step_bridge: str | None
    plan: str | None
    compressor: str | None
    return_hidden_state: bool
    dtype: NumberFormat


@dataclass(frozen=True)
class Call:
    """One HTTP request, not yet bound to a host."""

    method: Literal["GET", "POST"]
    path: str
    params: Mapping[str, int] | None = None
    body: Mapping[str, Any] | None = None
    accept: str | None = None
    wire: Wire = "json"
    request_id: str | None = None

    @property
    def k(self) -> int | None:
        """Hidden rows that the call keeps, or k of its compressor; None: all."""
        return self.params["k"] if self.params else None

    @property
    def compressor(self) -> str | None:
        """Name of the compressor that the call names."""
        name: str | None = (self.body or {}).get("compressor")
        return name

    @property
    def has_hidden_state(self) -> bool:
        """Whether the answer is to hold the full latent."""
        return (self.body or {}).get("return_hidden_state") is not False

    @cached_property
    def content(self) -> bytes | None:
        """The body with latents as tensors; None for a body that is sent as JSON."""
        tensors: dict[str, npt.NDArray[np.float32]] = {}
        if self.wire == "json" or self.body is None or "messages" not in self.body:
            return None
        messages = [_with_tensors(message, tensors) for message in self.body["messages"]]
        return pack_request({**self.body, "messages": messages}, tensors) if tensors else None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that this call adds to those of the client."""
        media_type = SAFETENSORS_MEDIA_TYPE if self.content is not None else None
        values = {
            "Accept": self.accept,
            "Content-Type": media_type,
            REQUEST_ID_HEADER: self.request_id,
        }
        return {name: value for name, value in values.items() if value is not None}


def plan_latent_call(
    task: str | None,
    k: int | None,
    task_id: str | None,
    options: PlanOptions,
    *,
    messages: MessageList | None = None,
    request_id: str | None = None,
    stream: bool = False,
    wire: Wire = "json",
) -> Call:
    """Build ``POST /plan_latent``. The task travels in the body: URLs end up in access logs.

    Args:
        task: in words; None when there are messages.
        k: hidden rows to keep; None: all.
        task_id: returned as given.
        options: the other fields.
        messages: a conversation in place of a task.
        request_id: sent as `X-Request-Id`; the service's log names the request by it.
        stream: whether the answer is a stream of events.
        wire: preferred form of the answer.

    Raises:
        InvalidArgumentError: when an argument exceeds its limits, or is unknown.
    """
    _check_request_id(request_id)
    fields: dict[str, object] = {"task_id": task_id, "k": k, **options}
    for name, value in (("task", task), ("messages", messages)):
        if value is not None:
            fields[name] = value
    if stream:
        fields["stream"] = True
    try:
        request = PlanLatentCall.model_validate(fields)
    except ValidationError as error:
        raise InvalidArgumentError(_field_at_fault(error), describe(error)) from error
    fault = fault_of(request)
    if fault is not None:
        raise InvalidArgumentError(fault[0], ": ".join(fault))
    return Call(
        "POST",
        "/plan_latent",
        params=None if request.k is None else {"k": request.k},
        # Unset fields are left out: their defaults are the service's.
        body=request.model_dump(mode="json", exclude={"k"}, exclude_unset=True),
        accept=EVENT_STREAM_MEDIA_TYPE if stream else ACCEPT[wire],
        wire=wire,
        request_id=request_id,
    )


def _with_tensors(
    message: Mapping[str, Any], tensors: dict[str, npt.NDArray[np.float32]]
) -> dict[str, Any]:
    """Return a message whose float32 latents name tensors, which are added to the given ones.

    Latents of other dtypes stay in the message: as float32 tensors they would be larger.

    Raises:
        InvalidArgumentError: the rows of a latent are not what their shape says.
    """
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = []
    for part in content:
        if part["type"] == "latent" and isinstance(part["hidden_state"], Mapping):
            sent = HiddenState.model_validate(part["hidden_state"])
            if sent.dtype == "float32":
                name = f"latent-{len(tensors)}"
                try:
                    tensors[name] = decode_hidden_state(sent)
                except ProtocolError as error:
                    raise InvalidArgumentError("messages", f"messages: {error}") from error
                part = {**part, "hidden_state": name}
        parts.append(part)
    return {**message, "content": parts}


def _check_request_id(request_id: str | None) -> None:
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgumentError(
            "request_id", "request_id: must be 1 to 128 letters, digits or any of . _ : -"
        )


def _field_at_fault(error: ValidationError) -> str:
    location = error.errors(include_url=False, include_input=False)[0]["loc"]
    return str(location[0]) if location else ""
