"""A latent on the wire: its rows, and the declaration of which hidden states they are.

This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from latentwire.number_formats import MAX_ROTATION_SEED, NumberFormat
from latentwire.sampling import must_be_unicode

_MAX_CHARS = 512
_MAX_LAYER = 2**31
_Size = Annotated[int, Strict()]
_Name = Annotated[str, Field(max_length=_MAX_CHARS), AfterValidator(must_be_unicode)]

Alignment = Literal["predicts", "steps-then-predicts"]


class ResponseModel(BaseModel):
    """Base of the models that the service answers.

    Unknown fields are ignored, so that a newer service does not break an older client.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


class HiddenState(ResponseModel):
    """A matrix of float32 values on the wire, in one of the number formats.

    ``data`` and ``scales`` are base64 (RFC 4648, standard alphabet, padded) of the C-order
    little-endian bytes. `latentwire.tensors.decode_hidden_state` gives float32 back.
    """

    data: str
    dtype: NumberFormat = "float32"
    byteorder: Literal["little"] = "little"
    shape: tuple[_Size, _Size] = Field(
        description="[rows, hidden size] of the matrix, whatever its dtype"
    )
    scales: str | None = Field(
        default=None, description="One float32 per row, with the dtypes int8 and int4 only."
    )
    rotation: Annotated[int, Strict(), Field(ge=0, le=MAX_ROTATION_SEED)] | None = Field(
        default=None,
        description="Seed of the rotation of int8 and int4 rows; none when they are not rotated.",
    )

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> Any:
        """Leave out scales and rotation where there are none, as answers had before them."""
        fields = serialize(self)
        return {
            name: value
            for name, value in fields.items()
            if value is not None or name not in ("scales", "rotation")
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the fields: of the serializer above, pydantic would know no schema."""
        described = {key: value for key, value in core_schema.items() if key != "serialization"}
        return handler(cast(CoreSchema, described))


class LatentInfo(ResponseModel):
    """Which hidden states a latent holds: tools differ, so every answer states it."""

    layer: Literal["last"] = "last"
    normed: Literal[True] = True
    alignment: Alignment = Field(
        default="predicts",
        description="predicts: row t predicted generated token t. steps-then-predicts: the rows of "
        "`usage.latent_steps` latent steps come first; row i of them became the input of step i.",
    )
    model: str
    revision: str | None = None
    engine: str | None = Field(
        default=None,
        description="Engine that computed the rows, and its version; null in answers of a service "
        "that does not say.",
    )

    @property
    def meaning(self) -> str:
        """The declaration in one sentence, for people."""
        row = "Row t is"
        if self.alignment == "steps-then-predicts":
            row = "After one row for each latent step, row t is"
        return (
            f"{row} the model's {self.layer}-layer hidden state, after the final norm, at the "
            "position whose logits produced generated token t; row 0 is the last position of the "
            "prompt."
        )


def _layer(value: object) -> object:
    """Check the name or the number of a layer, which error messages quote."""
    if isinstance(value, str):
        if len(value) > _MAX_CHARS:
            raise ValueError(f"must have at most {_MAX_CHARS} characters")
        return must_be_unicode(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _MAX_LAYER:
        raise ValueError("must be the name or the number of a layer")
    return value


class LatentDeclaration(BaseModel):
    """The declaration of a latent that a client sends: `LatentInfo` of any tool and version.

    Whether its values suit a bridge is for the bridge to say, with both values.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    layer: Annotated[str | int, BeforeValidator(_layer)] = "last"
    normed: Annotated[bool, Strict()] = True
    alignment: _Name = "predicts"
    model: _Name
    revision: _Name | None = None


def latent_info(
    model: str, revision: str | None, *, latent_steps: int = 0, engine: str | None = None
) -> LatentInfo:
    """Declare what the latents of a model are, for every wire and file format.

    Args:
        model: id of the model.
        revision: branch, tag or commit of a hub model; None when it has none.
        latent_steps: latent steps before the first token.
        engine: name and version of the engine; None when they are not known.
    """
    alignment: Alignment = "steps-then-predicts" if latent_steps else "predicts"
    return LatentInfo(model=model, revision=revision, alignment=alignment, engine=engine)
