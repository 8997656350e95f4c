"""Answers of OpenAI's routes for the OpenAPI document. `answers` makes the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from latentwire.constants import EVENT_STREAM_MEDIA_TYPE, JSON_MEDIA_TYPE
from latentwire.latent import HiddenState, LatentInfo
from latentwire_service.api.openai.error_form import OpenAIError

CHAT_EXAMPLES: Mapping[str, Example] = {
    "text": {
        "summary": "A conversation",
        "value": {"messages": [{"role": "user", "content": "Clean the kettle"}]},
    },
    "latent": {
        "summary": "The answer has its latent, eight rows of it",
        "value": {
            "messages": [{"role": "user", "content": "Clean the kettle"}],
            "max_tokens": 64,
            "latent": {"k": 8},
        },
    },
}


class AnswerLatent(BaseModel):
    """The latent of an answer. It is a part of a content, too: the next request can hold it."""

    type: Literal["latent"]
    hidden_state: HiddenState
    latent: LatentInfo


class AnswerMessage(BaseModel):
    """The message of the assistant."""

    role: Literal["assistant"]
    content: str
    refusal: None
    latent: AnswerLatent | None = Field(
        default=None, description="Present if the request has latent."
    )


class Choice(BaseModel):
    """The only choice."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latent_rows: int = Field(description="Hidden rows in the answer.")
    latent_steps: int = Field(description="Latent steps before the first token.")


class ChatCompletion(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str = Field(
        description="Changes with the model, its precision, the kind of device or the version."
    )
    choices: list[Choice]
    usage: ChatUsage
    seed: int = Field(description="The seed that was used.")
    date: str | None = Field(description="Date that the chat template wrote into the prompt.")


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the service started, in seconds since 1970.")
    owned_by: str = "latentwire"
    max_model_len: int = Field(description="Maximum tokens of a conversation and its answer.")


class ModelList(BaseModel):
    """All served models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


_CHUNKS = (
    'data: {"id":"chatcmpl-3e2602731dac088d4ce2575e","object":"chat.completion.chunk",'
    '"created":1764000000,"model":"demo","system_fingerprint":"fp_5f2c9a1b0d3e","choices":'
    '[{"index":0,"delta":{"content":"1","latent":{"index":0,"row":"AACAPwAAAMA="}},'
    '"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
CHAT_RESPONSE: dict[str, Any] = {
    "model": ChatCompletion,
    "description": "The answer; with `stream` a chunk per token",
    "content": {
        EVENT_STREAM_MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "properties": {"data": {"type": "string"}},
                "required": ["data"],
            },
            "example": _CHUNKS,
        }
    },
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI document."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "model": OpenAIError,
            "content": {JSON_MEDIA_TYPE: {}},
        }
        for status in statuses
    }
