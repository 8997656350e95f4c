"""Messages of a conversation: their parts are texts and latents, as a request holds them.

This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from latentwire.constants import (
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_PARTS,
    MAX_TEMPLATE_KWARGS,
    MAX_TEMPLATE_TEXT_CHARS,
)
from latentwire.latent import HiddenState, LatentDeclaration
from latentwire.sampling import Text, json_object, must_be_unicode

Name = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(must_be_unicode)
]
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class _Sent(BaseModel):
    """Base of what clients send in a message; the same rules as for a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def _kind(value: object) -> str | None:
    """Name the alternative of a union. The brackets keep the name out of locations of errors."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list | tuple):
        return "<list>"
    return "<object>" if isinstance(value, Mapping | HiddenState) else None


class TextPart(_Sent):
    """A text inside a message."""

    type: Literal["text"] = "text"
    text: Text


class LatentPart(_Sent):
    """A latent inside a message: its rows become input embeddings at this place.

    ``hidden_state`` and ``latent`` are those of the answer that the latent comes from.
    """

    type: Literal["latent"]
    hidden_state: Annotated[
        Annotated[Name, Tag("<text>")] | Annotated[HiddenState, Tag("<object>")],
        Discriminator(
            _kind,
            custom_error_type="hidden_state_type",
            custom_error_message="must be an object with data and shape, or the name of a tensor",
        ),
    ] = Field(
        description="The rows, or in a safetensors request the name of the tensor that holds them."
    )
    latent: LatentDeclaration = Field(
        description="The declaration of the answer that has these rows."
    )
    bridge: Name | None = Field(
        default=None,
        description="Bridge that maps the rows to input embeddings, one of /info; absent: the one "
        "that was made for this declaration.",
    )


def _part_kind(value: object) -> str | None:
    """Name the class of a part; None for a part of an unknown type."""
    if isinstance(value, Mapping):
        kind = value.get("type")
        return f"<{kind}>" if isinstance(kind, str) else None
    return f"<{value.type}>" if isinstance(value, TextPart | LatentPart) else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[LatentPart, Tag("<latent>")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message="must have the type text or latent",
    ),
]


class Message(_Sent):
    """One turn of a conversation."""

    role: Name = Field(
        description="Who speaks; the model's chat template decides which roles there are."
    )
    content: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Part], Field(max_length=MAX_PARTS, strict=False), Tag("<list>")],
        Discriminator(
            _kind,
            custom_error_type="content_type",
            custom_error_message="must be text or a list of parts",
        ),
    ] = Field(description="A text, or a list of parts.")

    @property
    def parts(self) -> Sequence[TextPart | LatentPart]:
        """The content as a list of parts."""
        if isinstance(self.content, str):
            return [TextPart(text=self.content)]
        return self.content


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Check the extra variables of a chat template: names of variables, and scalars."""
    for name, value in values.items():
        if not _IDENTIFIER.fullmatch(name) or len(name) > MAX_NAME_CHARS:
            raise ValueError(f"names must be identifiers of at most {MAX_NAME_CHARS} characters")
        if not isinstance(value, str | int | float | bool | None):
            raise ValueError(f"{name} must be text, a number, true, false or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number")
        if isinstance(value, str) and len(value) > MAX_TEMPLATE_TEXT_CHARS:
            raise ValueError(f"{name} must have at most {MAX_TEMPLATE_TEXT_CHARS} characters")
        if isinstance(value, str):
            must_be_unicode(value)
    return values


TemplateKwargs = Annotated[
    dict[str, Any],
    Field(max_length=MAX_TEMPLATE_KWARGS),
    AfterValidator(_flat),
    BeforeValidator(json_object),
]


def latent_parts(messages: Sequence[Message]) -> Iterator[tuple[str, LatentPart]]:
    """Yield the latents of a conversation in order, each with the path of its field."""
    for index, message in enumerate(messages):
        for position, part in enumerate(message.parts):
            if isinstance(part, LatentPart):
                yield f"messages.{index}.content.{position}", part
