"""The wire contract: every request, response and error body as a pydantic model.

What a latent is (stated here once; everything else points here). For a prompt of P tokens and L
generated tokens, the end-of-sequence token included when it was generated, ``hidden_state`` is
float32 ``[L, H]``. Row t is the model's last-layer hidden state, after the final norm, at the
position whose logits produced generated token t. Row 0 is the last prompt position. It equals
``out.hidden_states[t][-1][:, -1, :]`` of Hugging Face ``generate(..., output_hidden_states=True,
return_dict_in_generate=True)``. ``k`` keeps rows ``0..k-1``; the text is generated to its end.

With n latent steps before the first token, ``hidden_state`` is ``[n + L, H]``. Row i < n is the row
that a bridge turned into the input of latent step i, row 0 being the last prompt position; row
n + t predicted token t. ``latent.alignment`` says which of the two it is.

This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from latentwire.answer_form import AppliedCompressor as AppliedCompressor
from latentwire.answer_form import CompressorInfo as CompressorInfo
from latentwire.answer_form import LatentFields
from latentwire.bridge_info import BridgeInfo as BridgeInfo
from latentwire.bridge_info import BridgePrompt as BridgePrompt
from latentwire.bridge_info import BridgeSource as BridgeSource
from latentwire.constants import DEFAULT_MAX_NEW_TOKENS
from latentwire.conversation import Messages, Name, TemplateKwargs
from latentwire.latent import HiddenState as HiddenState
from latentwire.latent import LatentInfo as LatentInfo
from latentwire.latent import ResponseModel as ResponseModel
from latentwire.latent import latent_info as latent_info
from latentwire.sampling import (
    JsonInt,
    LogitBias,
    PromptFields,
    SamplingFields,
    Seed,
    Text,
)

DtypeName = Literal["bfloat16", "float16", "float32"]
FinishReason = Literal["stop", "length", "latent", "given"]
ErrorCode = Literal[
    "invalid-request",
    "prompt-too-long",
    "not-found",
    "method-not-allowed",
    "not-acceptable",
    "unsupported-media-type",
    "unauthorized",
    "body-timeout",
    "payload-too-large",
    "misdirected",
    "queue-full",
    "not-ready",
    "deadline-exceeded",
    "internal",
    "latent-invalid",
]


class RequestModel(BaseModel):
    """Base of the models that clients send: unknown fields, NaN and Infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_TASK = "The task to plan, in words."


class RequestFields(SamplingFields, PromptFields, RequestModel):
    """Fields of a request apart from what the prompt says: its task or its messages."""

    task_id: Text | None = Field(default=None, description="Returned as given; not interpreted.")
    system: Text | None = Field(
        default=None,
        min_length=1,
        description="System message before the task, through the chat template.",
    )
    chat_template_kwargs: TemplateKwargs | None = Field(
        default=None,
        description="Variables for the model's own chat template, such as enable_thinking: text, "
        "numbers, true, false or null.",
    )
    max_new_tokens: JsonInt = Field(
        default=DEFAULT_MAX_NEW_TOKENS,
        ge=0,
        description="Maximum number of tokens to generate; 0 only with latent_steps.",
    )
    latent_steps: JsonInt = Field(
        default=0,
        ge=0,
        description="Steps before the first token whose input is an embedding: a bridge makes it "
        "from the last hidden row.",
    )
    step_bridge: Name | None = Field(
        default=None,
        description="Bridge of the latent steps, one of /info; absent: generator if there is one, "
        "else weights.",
    )
    plan: Text | None = Field(
        default=None,
        min_length=1,
        description="A plan to be scored in place of generating one: the answer has its log "
        "probability and its rows.",
    )
    seed: Seed | None = Field(
        default=None, description="Drawn if absent; the answer states the seed that was used."
    )
    logit_bias: LogitBias | None = Field(
        default=None,
        description="Token ids, and numbers from -100 to 100 to add to their logits.",
    )
    stream: bool = Field(
        default=False,
        description="True: the answer is a stream with one event per token (text/event-stream).",
    )


class PlanLatentRequest(RequestFields):
    """What a request says: a task or messages, and how to answer. `fault_of` checks it as a whole.

    JSON has types, so nothing is converted: `true` and `"3"` are not numbers of tokens.
    """

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"oneOf": [{"required": ["task"]}, {"required": ["messages"]}]},
    )

    task: Text | None = Field(default=None, min_length=1, description=_TASK)
    messages: Messages | None = Field(
        default=None,
        description="A conversation in place of a task. A last message of the assistant is "
        "continued.",
    )


def fault_of(request: PlanLatentRequest) -> tuple[str, str] | None:
    """Find fields of a request that exclude each other.

    Returns:
        the field at fault and what is wrong with it; None for a request that makes sense.
    """
    given = request.model_fields_set
    if request.task is None and request.messages is None:
        return "task", "required, unless messages are given"
    if request.messages is not None:
        if request.task is not None:
            return "messages", "must not be given together with task"
        if request.system is not None:
            return "system", "belongs to task; messages have a message with the role system"
        if "prompt_template" in given:
            return "prompt_template", "belongs to task; messages are sent as they are"
    if request.plan is not None:
        if request.latent_steps:
            return "latent_steps", "must be 0 when a plan is scored"
        if request.stream:
            return "stream", "must be false when a plan is scored"
    elif request.max_new_tokens == 0 and request.latent_steps == 0:
        return "max_new_tokens", "must be at least 1, unless there are latent_steps"
    if request.step_bridge is not None and request.latent_steps == 0:
        return "step_bridge", "needs latent_steps of at least 1"
    return None


_JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}


class PlanLatentParams(LatentFields, RequestModel):
    """Query of ``POST /plan_latent``."""


class PlanLatentBody(PlanLatentRequest, PlanLatentParams):
    """Body of ``POST /plan_latent`` as the service reads it: it may have the query's fields."""


class PlanLatentCall(PlanLatentBody):
    """Arguments of a client: as the body, but numbers of any type that holds them."""

    model_config = ConfigDict(strict=False)


class PlanLatentQuery(RequestFields, PlanLatentParams):
    """Query of ``GET /plan_latent``: the fields of the body but `messages`, as text."""

    task: Text = Field(min_length=1, description=_TASK)
    # Described as text: a form-style object would spread over parameters of its own.
    logit_bias: Annotated[LogitBias | None, WithJsonSchema(_JSON_TEXT)] = Field(
        default=None,
        description="A JSON object of token ids, and numbers from -100 to 100 to add to their "
        "logits.",
    )
    chat_template_kwargs: Annotated[TemplateKwargs | None, WithJsonSchema(_JSON_TEXT)] = Field(
        default=None,
        description="A JSON object of variables for the model's own chat template.",
    )

    def to_request(self) -> PlanLatentRequest:
        """Return the request that these parameters make."""
        fields = self.model_dump(exclude={*PlanLatentParams.model_fields}, exclude_unset=True)
        return PlanLatentRequest.model_validate(fields, strict=False)


class Usage(ResponseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    latent_rows: int = Field(description="Hidden rows in the answer's hidden_state.")
    latent_steps: int = Field(default=0, description="Latent steps before the first token.")

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_name(cls, values: Any) -> Any:
        """Read answers of earlier services, which sent `latent_rows` as `latent_steps`."""
        if isinstance(values, dict) and "latent_rows" not in values and "latent_steps" in values:
            values = {**values, "latent_rows": values["latent_steps"], "latent_steps": 0}
        return values


class Timings(ResponseModel):
    """Durations of one request's phases, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


class AnswerFields(ResponseModel):
    """Fields that every form of an answer has."""

    id: str
    model: str
    task_id: str | None
    k: int | None
    latent: LatentInfo
    finish_reason: FinishReason
    seed: int
    date: str | None = Field(
        default=None,
        description="Date that the model's chat template wrote into the prompt; null: none. The "
        "same request with this seed and this date repeats the answer.",
    )
    usage: Usage
    timings: Timings

    def shared(self) -> dict[str, Any]:
        """Return these fields and their values, to build another form of the same answer."""
        return {name: getattr(self, name) for name in AnswerFields.model_fields}


class PlanLatentResponse(AnswerFields):
    """A plan and its latent."""

    task: str | None
    plan: str
    hidden_state: HiddenState | None
    hidden_state_comp: HiddenState | None = Field(
        default=None, description="The compressed latent, [K, D]; null without a compressor."
    )
    hidden_state_comp_arrays: dict[str, HiddenState] = Field(
        default={}, description="Further arrays of the compressor, in float32."
    )
    compressor: AppliedCompressor | None = None
    token_ids: list[int]
    logprob: float | None = Field(
        default=None,
        description="Natural log of the probability of a given plan, at temperature 1: the sum of "
        "token_logprobs.",
    )
    token_logprobs: list[float] | None = Field(
        default=None, description="Log probability of each token of a given plan."
    )


class StreamStep(ResponseModel):
    """Data of a `step` event: one generated token."""

    index: int = Field(description="Position among latent steps and generated tokens, from 0.")
    token_id: int | None = Field(description="The token; null for a latent step.")
    text: str = Field(
        description="Text that the token adds to the plan; empty while a character is incomplete."
    )
    row: str | HiddenState | None = Field(
        default=None,
        description="The hidden row that predicted the token, if the answer holds it: base64 of "
        "its little-endian float32 bytes; with another dtype, an object like hidden_state.",
    )


class StreamDone(AnswerFields):
    """Data of the `done` event, the last one: the fields that the `step` events do not have."""

    shape: tuple[int, int] = Field(description="[rows sent, hidden size]")
    hidden_state_comp: HiddenState | None = None
    hidden_state_comp_arrays: dict[str, HiddenState] = {}
    compressor: AppliedCompressor | None = None
    plan: str | None = Field(
        default=None,
        description="Present only when the concatenated texts differ from the plan (invalid UTF-8 "
        "can decode differently once more bytes follow).",
    )


class Limits(ResponseModel):
    """Limits of one replica."""

    max_slots: int = Field(description="Sequences decoded together.")
    max_model_len: int = Field(
        description="Maximum tokens of one sequence, prompt and generated tokens together."
    )
    max_queue: int = Field(
        description="Maximum requests that wait for a slot; one more is answered 429."
    )
    max_body_bytes: int = Field(description="Maximum bytes of one request body.")
    max_new_tokens: int | None = Field(
        default=None,
        description="Largest max_new_tokens of a request; null: max_model_len is the only limit.",
    )
    request_timeout_s: float | None = Field(
        default=None,
        description="Seconds that a request may take before it is answered 504; null: no limit.",
    )


class InfoResponse(ResponseModel):
    """The model that a replica serves. Holds no host name and no path."""

    model: str
    revision: str | None
    hidden_size: int
    vocab_size: int
    dtype: DtypeName
    device: str = Field(description="Kind of device: cuda, mps or cpu.")
    limits: Limits
    version: str
    engine: str = Field(
        default="latentwire", description="Engine that runs the model: latentwire or vllm."
    )
    engine_version: str | None = Field(
        default=None, description="Version of the engine; null in answers of an older service."
    )
    compressors: list[str] = Field(description="Names of the latent compressors.")
    compressor_info: list[CompressorInfo] = []
    capabilities: list[str] = Field(
        default=[],
        description="What this engine can do with the model, of latents-in, latent-steps, scoring.",
    )
    refusals: dict[str, str] = Field(
        default={},
        description="Why the engine lacks one of these, by its name. Also, by the name of a "
        "request's field, which values the engine takes, where other engines take more.",
    )
    generation_defaults: dict[str, Any] = Field(
        default={},
        description="Settings of the model's generation_config.json that are applied to the choice "
        "of tokens. Temperature, top_p and top_k are the request's.",
    )
    bridges: list[BridgeInfo] = Field(
        default=[], description="What makes input embeddings of another model's hidden rows."
    )
    uptime_s: float | None = Field(
        default=None,
        description="Seconds since the service began to load; null in answers of an older one.",
    )


class StatusResponse(ResponseModel):
    """Answer of ``/health`` and ``/ready``."""

    status: Literal["ok", "ready"]


class ErrorBody(BaseModel):
    """RFC 9457 problem details with a stable `code`.

    Unknown members are kept, as the RFC requires of consumers.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    code: ErrorCode
    detail: str
    field: str | None = Field(default=None, description="The offending field (invalid-request).")
    prompt_tokens: int | None = Field(default=None, description="Set for prompt-too-long.")
    max_model_len: int | None = Field(default=None, description="Set for prompt-too-long.")
    error_id: str | None = Field(
        default=None, description="Identifies the error in the service's log (internal)."
    )
    engine_failed: bool | None = Field(
        default=None,
        description="True if the engine failed after it had accepted the request (not-ready).",
    )
