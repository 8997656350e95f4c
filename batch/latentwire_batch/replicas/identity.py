"""The identity of the model that all replicas of one collection must serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latentwire import InfoResponse


@dataclass(frozen=True)
class ModelIdentity:
    """The model behind an output.

    Attributes:
        model: its name, without a path.
        revision: of a hub model, if the service knows it.
        hidden_size: width of a latent's rows.
        dtype: compute dtype.
        generation_defaults: the model's own settings for the choice of tokens; None in the settings
            of a run that did not record them.
    """

    model: str
    revision: str | None
    hidden_size: int
    dtype: str
    generation_defaults: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, info: InfoResponse) -> ModelIdentity:
        """Take the identity from a replica's `/info`."""
        return cls(
            info.model, info.revision, info.hidden_size, info.dtype, info.generation_defaults
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelIdentity:
        """Read what `to_json` returned; raises KeyError when a value is missing."""
        return cls(
            value["model"],
            value["revision"],
            value["hidden_size"],
            value["dtype"],
            value.get("generation_defaults"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the identity as JSON values."""
        value = asdict(self)
        if self.generation_defaults is None:
            del value["generation_defaults"]
        return value

    def __str__(self) -> str:
        """Describe the model in a message."""
        revision = f" at {self.revision}" if self.revision else ""
        defaults = f", {dict(self.generation_defaults)}" if self.generation_defaults else ""
        return f"{self.model!r}{revision} (hidden size {self.hidden_size}, {self.dtype}{defaults})"
