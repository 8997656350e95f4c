"""The prompt and sampling fields of a plan request: names, limits, defaults and meanings, once.

Mixins for every model that has these fields: the request itself, the settings of `latentwire plan`
and of `latentwire collect`. This module must not know HTTP, files or command lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from latentwire.constants import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPT_TEMPLATE,
    MAX_LOGIT_BIASES,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKEN_ID,
)
from latentwire.strict_json import RepeatedKeyError, load_json

ChatTemplate = Literal["auto", "none", "qwen"]


def must_be_unicode(text: str) -> str:
    """Refuse half of a surrogate pair: Python and JSON can hold one, but valid text cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text") from None
    return text


def _integral(value: object) -> object:
    """Read 2.0 as 2: JSON and JSON Schema treat them as the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _iso_date(text: str) -> str:
    """Check a date like 2025-01-31."""
    if len(text) != len("2025-01-31"):
        raise ValueError("must be a date like 2025-01-31")
    try:
        date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date like 2025-01-31") from None
    return text


def json_object(value: object) -> object:
    """Read an object that a query or a flag holds as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except RepeatedKeyError as error:
        raise ValueError(f"must not have the key {error.key[:20]!r} twice") from None
    except ValueError:
        raise ValueError("must be a JSON object") from None


def _token_keys(value: object) -> object:
    """Read the keys of a JSON object as token ids: JSON has text keys only."""
    if not isinstance(value, Mapping):
        return value
    token_ids = {_token_id(key): bias for key, bias in value.items()}
    if len(token_ids) < len(value):
        # "7" and "07" are two keys of JSON, and one token.
        raise ValueError("must not have a token id twice")
    return token_ids


def _token_id(key: Any) -> object:
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
    return int(key) if is_number else key


Text = Annotated[str, AfterValidator(must_be_unicode)]
JsonInt = Annotated[int, BeforeValidator(_integral)]
NumRows = Annotated[int, Field(ge=0), BeforeValidator(_integral)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_integral)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), BeforeValidator(_integral)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[TokenId, Bias],
    Field(
        max_length=MAX_LOGIT_BIASES, json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}}
    ),
    BeforeValidator(_token_keys),
    BeforeValidator(json_object),
]
IsoDate = Annotated[
    str, AfterValidator(_iso_date), WithJsonSchema({"type": "string", "format": "date"})
]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class PromptFields(BaseModel):
    """The text and the markup of the prompt."""

    prompt_template: Text = Field(
        default=DEFAULT_PROMPT_TEMPLATE,
        description="Prompt text. Each `{task}` is replaced by the task; other braces are kept.",
    )
    chat_template: ChatTemplate = Field(
        default="auto",
        description="Chat markup. auto: the tokenizer's own template if it has one, else none. "
        "none: the bare prompt. qwen: ChatML with one user turn and an open assistant turn.",
    )
    date: IsoDate | None = Field(
        default=None,
        description="Date that the model's own chat template writes, if it writes today's, like "
        "2025-01-31; absent: today, in UTC.",
    )


class SamplingFields(BaseModel):
    """The choice of tokens and the end of generation. The seed is not here: a dataset derives it.

    The defaults are the service's; clients send only the fields that were set.
    """

    max_new_tokens: JsonInt = Field(
        default=DEFAULT_MAX_NEW_TOKENS, ge=1, description="Maximum number of tokens to generate."
    )
    do_sample: bool = Field(default=True, description="Sample; false decodes greedily.")
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="Sampling temperature; 0 decodes greedily."
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="Probability mass to sample from; 1 keeps all tokens."
    )
    top_k: JsonInt = Field(
        default=0, ge=0, description="Number of most likely tokens to keep; 0 keeps all tokens."
    )
    stop: list[StopString] = Field(
        default=[],
        max_length=MAX_STOP_STRINGS,
        description="Generation ends when the text contains one of these strings; the plan ends "
        "before it. A special token, such as `<|im_end|>`, matches the token itself.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(
        default=None,
        description="Generation ends with one of these tokens; the plan ends before its text.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop tokens less likely than this share of the most likely one; absent: the "
        "model's own default, else 0.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Divide the positive logits of tokens in prompt and plan by it, and multiply "
        "the negative ones; 1 changes nothing; absent: the model's own default, else 1.",
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtract it from the logits of tokens that the plan holds; absent: 0.",
    )
    frequency_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtract it from a token's logit for each time that the plan holds the token; "
        "absent: 0.",
    )
