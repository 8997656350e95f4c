"""From a chat request to the plan request that the service runs, and back for its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from latentwire.protocol import PlanLatentRequest
from latentwire_service.api.openai.chat_request import ChatRequest
from latentwire_service.engine.backend import Step
from latentwire_service.engine.errors import EngineError, InvalidParamsError, PromptTooLongError
from latentwire_service.model_service import ModelService, Plan
from latentwire_service.request_builder import Submission

# Both requests have them, under the same name and with the same meaning. Null is absent.
_SHARED = (
    "stop",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stream",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "chat_template",
    "date",
)
_STEP_FIELDS = ("latent_steps", "step_bridge", "chat_template_kwargs")


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat request as a plan request.

    Attributes:
        body: the plan request.
        k: rows to keep; None: all.
        has_latent: whether the answer holds the latent.
        has_usage: whether a stream states its usage.
        is_length_open: the request does not say how much to generate.
        names: of fields of the plan request, as the chat request spells them.
    """

    body: PlanLatentRequest
    k: int | None
    has_latent: bool
    has_usage: bool
    is_length_open: bool
    names: Mapping[str, str]


def chat_plan(chat: ChatRequest) -> ChatPlan:
    """Translate a request.

    Raises:
        InvalidParamsError: fields exclude each other.
    """
    if chat.stream_options is not None and not chat.stream:
        raise InvalidParamsError("stream_options", "needs stream: true")
    names = {"prompt_template": "messages"}
    fields: dict[str, Any] = {"messages": [message.to_message() for message in chat.messages]}
    for name in _SHARED:
        if (value := getattr(chat, name)) is not None:
            fields[name] = value
    for name in _STEP_FIELDS:
        value, names[name] = _one_of(chat, name)
        if value is not None:
            fields[name] = value
    max_new_tokens, names["max_new_tokens"] = _max_new_tokens(chat)
    if max_new_tokens is not None:
        fields["max_new_tokens"] = max_new_tokens
    return ChatPlan(
        body=PlanLatentRequest.model_validate(fields),
        k=0 if chat.latent is None else chat.latent.k,
        has_latent=chat.latent is not None,
        has_usage=chat.stream_options is not None and bool(chat.stream_options.include_usage),
        is_length_open=max_new_tokens is None,
        names=names,
    )


def _one_of(chat: ChatRequest, name: str) -> tuple[Any, str]:
    """Return a field of the body or of `latent`, and its path."""
    outer = getattr(chat, name)
    inner = None if chat.latent is None else getattr(chat.latent, name)
    if inner is None:
        return outer, name
    if outer is not None and outer != inner:
        raise InvalidParamsError(f"latent.{name}", f"differs from {name}")
    return inner, f"latent.{name}"


def _max_new_tokens(chat: ChatRequest) -> tuple[int | None, str]:
    old, new = chat.max_tokens, chat.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidParamsError("max_tokens", "differs from max_completion_tokens")
    return (new, "max_completion_tokens") if old is None else (old, "max_tokens")


class ChatPlans:
    """Runs plan requests; its errors name the fields of the chat request.

    Args:
        service: runs them.
        names: as in `ChatPlan`.
    """

    def __init__(self, service: ModelService, names: Mapping[str, str]) -> None:
        self._service = service
        self._names = names

    async def plan(self, submission: Submission) -> Plan:
        """Do as `ModelService.plan`."""
        try:
            return await self._service.plan(submission)
        except EngineError as error:
            raise self._renamed(error) from error

    async def stream(self, submission: Submission) -> AsyncIterator[list[Step] | Plan]:
        """Do as `ModelService.stream`."""
        async with aclosing(self._service.stream(submission)) as items:
            try:
                async for item in items:
                    yield item
            except EngineError as error:
                raise self._renamed(error) from error

    def _renamed(self, error: EngineError) -> EngineError:
        if isinstance(error, InvalidParamsError):
            message = error.message
            for field, name in self._names.items():
                message = message.replace(field, name)
            return InvalidParamsError(self._names.get(error.field, error.field), message)
        if isinstance(error, PromptTooLongError):
            # It has its own wording, of which one word is the name of a field.
            name = self._names["max_new_tokens"]
            error.args = (str(error).replace("max_new_tokens", name),)
        return error
