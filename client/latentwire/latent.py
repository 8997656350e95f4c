"""A latent on the wire: its rows, and the declaration of which hidden states they are.

This module must not know HTTP, torch or FastAPI.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Alignment = Literal["predicts", "steps-then-predicts"]


class ResponseModel(BaseModel):
    """Base of the models that the service answers.

    Unknown fields are ignored, so that a newer service does not break an older client.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


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
    alignment: Alignment = Field(
        default="predicts",
        description="predicts: row t predicted generated token t. steps-then-predicts: the rows of "
        "`usage.latent_steps` latent steps come first; row i of them became the input of step i.",
    )
    model: str
    revision: str | None = None

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


class LatentDeclaration(BaseModel):
    """The declaration of a latent that a client sends: `LatentInfo` of any tool and version.

    Whether its values suit a bridge is for the bridge to say, with both values.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    layer: str | int = "last"
    normed: bool = True
    alignment: str = "predicts"
    model: str
    revision: str | None = None


def latent_info(model: str, revision: str | None, *, latent_steps: int = 0) -> LatentInfo:
    """Declare what the latents of a model are, for every wire and file format.

    Args:
        model: id of the model.
        revision: branch, tag or commit of a hub model; None when it has none.
        latent_steps: latent steps before the first token.
    """
    alignment: Alignment = "steps-then-predicts" if latent_steps else "predicts"
    return LatentInfo(model=model, revision=revision, alignment=alignment)
