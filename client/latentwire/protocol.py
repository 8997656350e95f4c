"""The wire contract: every request, response and error body as a pydantic model.

What a latent is (stated here once; everything else points here). For a prompt of P tokens and L
generated tokens, the end-of-sequence token included when it was generated, ``hidden_state`` is
float32 ``[L, H]``. Row t is the model's last-layer hidden state, after the final norm, at the
position whose logits produced generated token t. Row 0 is the last prompt position. It equals
``out.hidden_states[t][-1][:, -1, :]`` of Hugging Face ``generate(..., output_hidden_states=True,
return_dict_in_generate=True)``. ``k`` keeps rows ``0..k-1``; the text is generated to its end.

This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from latentwire.constants import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPT_TEMPLATE,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
)

ChatTemplate = Literal["auto", "none", "qwen"]
DtypeName = Literal["bfloat16", "float16", "float32"]
FinishReason = Literal["stop", "length"]
ErrorCode = Literal[
    "invalid-request",
    "prompt-too-long",
    "not-found",
    "method-not-allowed",
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


def _must_be_unicode(text: str) -> str:
    """Refuse half of a surrogate pair: Python and JSON can hold one, but no text does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text") from None
    return text


def _integral(value: object) -> object:
    """Take 2.0 for 2: to JSON, and to JSON Schema, they are the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_must_be_unicode)]
JsonInt = Annotated[int, BeforeValidator(_integral)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_integral)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class RequestModel(BaseModel):
    """Base of what clients send: unknown fields are refused, NaN and Infinity are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    """Base of what the service answers.

    Unknown fields are passed over, so that a newer service does not break an older client.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


class PlanLatentRequest(RequestModel):
    """Body of ``POST /plan_latent``; each field is also a query parameter of the GET form.

    JSON has types, so nothing is converted: `true` and `"3"` are no number of tokens.
    """

    model_config = ConfigDict(strict=True)

    task: Text = Field(min_length=1, description="The task to plan, in words.")
    task_id: Text | None = Field(default=None, description="Returned as given; not interpreted.")
    prompt_template: Text = Field(
        default=DEFAULT_PROMPT_TEMPLATE,
        description="Each `{task}` is replaced by the task, literally; other braces stay.",
    )
    chat_template: ChatTemplate = Field(
        default="auto",
        description="auto: the tokenizer's own if it has one, else none. none: the bare prompt. "
        "qwen: ChatML with one user turn and an opened assistant turn.",
    )
    max_new_tokens: JsonInt = Field(
        default=DEFAULT_MAX_NEW_TOKENS, ge=1, description="Most tokens to generate."
    )
    do_sample: bool = Field(default=True, description="False: greedy decoding.")
    temperature: float = Field(default=1.0, ge=0, le=100, description="0 means greedy decoding.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus mass; 1 keeps all tokens.")
    top_k: JsonInt = Field(default=0, ge=0, description="Most tokens kept; 0 keeps all tokens.")
    seed: Seed | None = Field(default=None, description="Drawn when absent; the answer states it.")
    stop: list[StopString] = Field(
        default=[],
        max_length=MAX_STOP_STRINGS,
        description="Generation ends when one of these is in the text; the plan ends before it.",
    )
    stream: bool = Field(
        default=False, description="True: answered with an event per token (text/event-stream)."
    )


class PlanLatentParams(RequestModel):
    """Query of ``POST /plan_latent``."""

    k: int | None = Field(
        default=None, ge=0, description="Hidden rows to keep; absent: all; 0: text only."
    )


class PlanLatentQuery(PlanLatentRequest, PlanLatentParams):
    """Query of ``GET /plan_latent``: the body's fields and `k`, from text."""

    model_config = ConfigDict(strict=False)


class HiddenState(ResponseModel):
    """A float32 matrix on the wire.

    ``data`` is base64 (RFC 4648, standard alphabet, padded) of the C-order little-endian bytes.
    """

    data: str
    dtype: Literal["float32"] = "float32"
    byteorder: Literal["little"] = "little"
    shape: tuple[int, int] = Field(description="[rows, hidden size]")


class LatentInfo(ResponseModel):
    """Which hidden state a latent is: tools differ, so every answer says it."""

    layer: Literal["last"] = "last"
    normed: Literal[True] = True
    alignment: Literal["predicts"] = "predicts"
    model: str
    revision: str | None = None


class Usage(ResponseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    latent_steps: int


class Timings(ResponseModel):
    """Where one answer's time went, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


class PlanLatentResponse(ResponseModel):
    """A plan and its latent."""

    id: str
    model: str
    task: str
    task_id: str | None
    plan: str
    k: int | None
    hidden_state: HiddenState
    latent: LatentInfo
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: Timings


class StreamStep(ResponseModel):
    """Data of a `step` event: one generated token."""

    index: int = Field(description="Position among the generated tokens, from 0.")
    token_id: int
    text: str = Field(description="What the plan grew by; empty while a character is unfinished.")
    row: str | None = Field(
        default=None,
        description="The hidden row that predicted the token, while index < k: base64 of its "
        "little-endian float32 bytes.",
    )


class StreamDone(ResponseModel):
    """Data of the `done` event, the last one: what the steps have not said."""

    id: str
    model: str
    task_id: str | None
    k: int | None
    shape: tuple[int, int] = Field(description="[rows sent, hidden size]")
    latent: LatentInfo
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: Timings
    plan: str | None = Field(
        default=None,
        description="Only where the steps' texts do not join to the plan: the tokenizer reads "
        "invalid bytes otherwise once others follow them.",
    )


class Limits(ResponseModel):
    """What one replica takes at most."""

    max_slots: int = Field(description="Sequences decoded together.")
    max_model_len: int = Field(description="Prompt and generated tokens of one sequence.")
    max_queue: int = Field(description="Requests waiting for a slot before 429.")
    max_body_bytes: int = Field(description="Size of one request body.")
    max_new_tokens: int | None = Field(
        default=None, description="Most max_new_tokens of a request; null: what a sequence holds."
    )
    request_timeout_s: float | None = Field(
        default=None, description="Seconds a request may take before 504; null: no limit."
    )


class InfoResponse(ResponseModel):
    """What a replica serves. Holds no host name and no path."""

    model: str
    revision: str | None
    hidden_size: int
    vocab_size: int
    dtype: DtypeName
    device: str = Field(description="Kind of device: cuda, mps or cpu.")
    limits: Limits
    version: str
    compressors: list[str] = Field(description="Latent compressors loaded beside the model.")


class StatusResponse(ResponseModel):
    """Answer of ``/health`` and ``/ready``."""

    status: Literal["ok", "ready"]


class ErrorBody(BaseModel):
    """RFC 9457 problem details with a stable `code`.

    Members beyond the standard ones are kept, as the RFC asks of consumers.
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
    error_id: str | None = Field(default=None, description="What to look up in the service's log.")
