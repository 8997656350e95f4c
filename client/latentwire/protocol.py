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

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from latentwire.sampling import LogitBias, NumRows, PromptFields, SamplingFields, Seed, Text

DtypeName = Literal["bfloat16", "float16", "float32"]
FinishReason = Literal["stop", "length"]
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


class ResponseModel(BaseModel):
    """Base of the models that the service answers.

    Unknown fields are ignored, so that a newer service does not break an older client.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


class TaskFields(RequestModel):
    """The task to plan."""

    task: Text = Field(min_length=1, description="The task to plan, in words.")
    task_id: Text | None = Field(default=None, description="Returned as given; not interpreted.")


class PlanLatentRequest(SamplingFields, PromptFields, TaskFields):
    """Body of ``POST /plan_latent``; each field is also a query parameter of the GET form.

    JSON has types, so nothing is converted: `true` and `"3"` are not numbers of tokens.
    """

    model_config = ConfigDict(strict=True)

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


_JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}


class PlanLatentParams(RequestModel):
    """Query of ``POST /plan_latent``."""

    k: NumRows | None = Field(
        default=None, description="Hidden rows to keep; absent: all; 0: text only."
    )


class PlanLatentBody(PlanLatentRequest, PlanLatentParams):
    """Body of ``POST /plan_latent`` as the service reads it: `k` may be here or in the query."""


class PlanLatentQuery(PlanLatentRequest, PlanLatentParams):
    """Query of ``GET /plan_latent``: the fields of the body and `k`, as text."""

    model_config = ConfigDict(strict=False)

    # Described as text: a form-style object would spread over parameters of its own.
    logit_bias: Annotated[LogitBias | None, WithJsonSchema(_JSON_TEXT)] = Field(
        default=None,
        description="A JSON object of token ids, and numbers from -100 to 100 to add to their "
        "logits.",
    )


class HiddenState(ResponseModel):
    """A float32 matrix on the wire.

    ``data`` is base64 (RFC 4648, standard alphabet, padded) of the C-order little-endian bytes.
    """

    data: str
    dtype: Literal["float32"] = "float32"
    byteorder: Literal["little"] = "little"
    shape: tuple[int, int] = Field(description="[rows, hidden size]")


class LatentInfo(ResponseModel):
    """Which hidden states a latent holds: tools differ, so every answer states it."""

    layer: Literal["last"] = "last"
    normed: Literal[True] = True
    alignment: Literal["predicts"] = "predicts"
    model: str
    revision: str | None = None

    @property
    def meaning(self) -> str:
        """The declaration in one sentence, for people."""
        return (
            f"Row t is the model's {self.layer}-layer hidden state, after the final norm, at the "
            "position whose logits produced generated token t; row 0 is the last position of the "
            "prompt."
        )


def latent_info(model: str, revision: str | None) -> LatentInfo:
    """Declare what the latents of a model are, for every wire and file format.

    Args:
        model: id of the model.
        revision: branch, tag or commit of a hub model; None when it has none.
    """
    return LatentInfo(model=model, revision=revision)


class Usage(ResponseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    latent_steps: int


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

    task: str
    plan: str
    hidden_state: HiddenState
    token_ids: list[int]


class StreamStep(ResponseModel):
    """Data of a `step` event: one generated token."""

    index: int = Field(description="Position among the generated tokens, from 0.")
    token_id: int
    text: str = Field(
        description="Text that the token adds to the plan; empty while a character is incomplete."
    )
    row: str | None = Field(
        default=None,
        description="The hidden row that predicted the token, while index < k: base64 of its "
        "little-endian float32 bytes.",
    )


class StreamDone(AnswerFields):
    """Data of the `done` event, the last one: the fields that the `step` events do not have."""

    shape: tuple[int, int] = Field(description="[rows sent, hidden size]")
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


class BridgeSource(ResponseModel):
    """The latents that a bridge was made for; null accepts any value."""

    model: str | None = None
    revision: str | None = None
    hidden_size: int | None = Field(default=None, description="Width of the rows.")
    layer: str | None = None
    normed: bool | None = None


class BridgePrompt(ResponseModel):
    """The user message that a bridge was fitted with: the latent stands between the two texts."""

    before: str
    after: str


class BridgeInfo(ResponseModel):
    """A bridge: it maps hidden rows of a sender to input embeddings of the served model."""

    name: str
    kind: str = Field(description="How it maps: embeddings, norm, weights, ridge, mlp or interlat.")
    source: BridgeSource
    content_hash: str = Field(description="SHA-256 of what decides its values.")
    is_step_bridge: bool = Field(
        description="Whether it maps each row by itself, so that it can feed latent steps."
    )
    prompt: BridgePrompt | None = None


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
    compressors: list[str] = Field(description="Latent compressors loaded with the model.")
    generation_defaults: dict[str, Any] = Field(
        default={},
        description="Settings of the model's generation_config.json that are applied to the choice "
        "of tokens. Temperature, top_p and top_k are the request's.",
    )
    bridges: list[BridgeInfo] = Field(
        default=[], description="What makes input embeddings of another model's hidden rows."
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
