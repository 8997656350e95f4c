"""The body of `POST /v1/chat/completions`: which fields are served, ignored or refused."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from latentwire.constants import (
    MAX_MESSAGES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from latentwire.conversation import Message, Name, TemplateKwargs
from latentwire.protocol import PlanLatentRequest
from latentwire.sampling import (
    ChatTemplate,
    IsoDate,
    LogitBias,
    NumRows,
    Seed,
    StopString,
    Text,
    TokenId,
)


class ChatModel(BaseModel):
    """Base of the models of this body: unknown fields, NaN and Infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Only:
    """Marks a field that is not served: it may be null, or a value that requests nothing.

    Args:
        values: are accepted in addition to null.
        why: the reason, for the message.
    """

    def __init__(self, *values: JsonValue, why: str) -> None:
        self._accepted: list[JsonValue] = [*values, None]
        self._message = f"must be {' or '.join(map(json.dumps, self._accepted))}: {why}"

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the check."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the accepted values."""
        return {"enum": self._accepted, "description": "Not served."}

    def _check(self, value: Any) -> Any:
        # 0 and false, 1 and true are equal in Python, but not in JSON.
        if not any(type(value) is type(other) and value == other for other in self._accepted):
            raise ValueError(self._message)
        return value


def _listed(value: object) -> object:
    """Read one stop string as a list."""
    return [value] if isinstance(value, str) else value


Count = NumRows
_NO_TOOLS = "the service calls no tools"
Ignored = Annotated[Any, Field(description="Has no effect.")]
NoTools = Annotated[JsonValue, _Only([], why=_NO_TOOLS)]
NoCall = Annotated[JsonValue, _Only("none", why=_NO_TOOLS)]
NoChoice = Annotated[JsonValue, _Only("none", "auto", why=_NO_TOOLS)]
Nothing = Annotated[JsonValue, _Only(why="the service does not serve it")]
Never = Annotated[JsonValue, _Only(False, why="the service answers latents, not log probabilities")]
NoCount = Annotated[JsonValue, _Only(0, why="the service answers latents, not log probabilities")]
One = Annotated[JsonValue, _Only(1, why="a request has one answer; send several requests")]
TextFormat = Annotated[JsonValue, _Only({"type": "text"}, why="answers are free text")]
TextOnly = Annotated[JsonValue, _Only(["text"], why="answers are text and latents")]
NoEffort = Annotated[
    JsonValue, _Only("none", why="chat_template_kwargs sets the variables of the chat template")
]
Medium = Annotated[JsonValue, _Only("medium", why="a message can say how long the answer shall be")]
Stop = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    "maxItems": MAX_STOP_STRINGS,
                },
            ]
        }
    ),
]


def _role(role: str) -> str:
    if role in ("tool", "function"):
        raise ValueError(f"must not be {role}: {_NO_TOOLS}")
    return role


class ChatMessage(Message):
    """One turn. An answer's message can be sent back as it is; only role and content count."""

    role: Annotated[Name, AfterValidator(_role)] = Field(
        description="system, user, assistant, or another role of the model's chat template; "
        "developer is read as system."
    )
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    latent: Ignored = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: NoTools = None

    def to_message(self) -> Message:
        """Return role and content."""
        role = "system" if self.role == "developer" else self.role
        return Message.model_construct(role=role, content=self.content)


class StepFields(ChatModel):
    """Fields of this service that may be at the top level or in `latent`."""

    latent_steps: Count | None = Field(
        default=None, description="Latent steps before the first token; absent: 0."
    )
    step_bridge: Name | None = Field(
        default=None, description=PlanLatentRequest.model_fields["step_bridge"].description
    )
    chat_template_kwargs: TemplateKwargs | None = Field(
        default=None, description="Variables for the model's own chat template."
    )


class LatentOptions(StepFields):
    """Requests the latent of the answer."""

    k: Count | None = Field(default=None, description="Hidden rows to keep; absent: all.")


class StreamOptions(ChatModel):
    """Options of a stream."""

    include_usage: bool | None = Field(
        default=None, description="True: a chunk without choices states the usage."
    )
    include_obfuscation: Ignored = None


class ChatRequest(StepFields):
    """Body of `POST /v1/chat/completions`. Null is the same as an absent field."""

    model: Text | None = Field(
        default=None, description="The served model, as in /v1/models; absent: that one."
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation. Its latents are parts of contents, as in /plan_latent. A "
        "last message of the assistant is continued."
    )
    latent: LatentOptions | None = Field(
        default=None, description="Present: the answer's message has its latent."
    )
    max_completion_tokens: Count | None = Field(
        default=None,
        description="Maximum number of tokens to generate; absent: 512, or what fits.",
    )
    max_tokens: Count | None = Field(
        default=None, description="Earlier name of max_completion_tokens."
    )
    stop: Stop | None = Field(
        default=None, description="Generation ends before one of these strings."
    )
    seed: Seed | None = Field(
        default=None, description="Drawn if absent; the answer states the seed that was used."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=100, description="Absent: 1; 0 decodes greedily."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Absent: 0.9, as in /plan_latent."
    )
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(
        default=None,
        description="Token ids, and numbers from -100 to 100 to add to their logits.",
    )
    stream: bool | None = Field(default=None, description="True: the answer is a stream of chunks.")
    stream_options: StreamOptions | None = Field(
        default=None, description="Only with stream: true."
    )
    top_k: Count | None = Field(default=None, description="As in /plan_latent.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="As in /plan_latent.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="As in /plan_latent."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(
        default=None, description="As in /plan_latent."
    )
    chat_template: ChatTemplate | None = Field(default=None, description="As in /plan_latent.")
    date: IsoDate | None = Field(default=None, description="As in /plan_latent.")

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    parallel_tool_calls: Ignored = None

    n: One = None
    logprobs: Never = None
    top_logprobs: NoCount = None
    tools: NoTools = None
    tool_choice: NoChoice = None
    functions: NoTools = None
    function_call: NoCall = None
    response_format: TextFormat = None
    modalities: TextOnly = None
    audio: Nothing = None
    prediction: Nothing = None
    web_search_options: Nothing = None
    reasoning_effort: NoEffort = None
    verbosity: Medium = None
