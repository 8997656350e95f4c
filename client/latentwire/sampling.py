"""The prompt and sampling fields of a plan request: names, limits, defaults and meanings, once.

Mixins for every model that has these fields: the request itself, the settings of `latentwire plan`
and of `latentwire collect`. This module must not know HTTP, files or command lines.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from latentwire.constants import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_PROMPT_TEMPLATE,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
)

ChatTemplate = Literal["auto", "none", "qwen"]


def _must_be_unicode(text: str) -> str:
    """Refuse half of a surrogate pair: Python and JSON can hold one, but valid text cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text") from None
    return text


def _integral(value: object) -> object:
    """Read 2.0 as 2: JSON and JSON Schema treat them as the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_must_be_unicode)]
JsonInt = Annotated[int, BeforeValidator(_integral)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_integral)]
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
        "before it.",
    )
