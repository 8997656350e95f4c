"""The identity of the model that all replicas of one collection must serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
        engine: that computes the rows; None in the settings of a run that did not record it.
        engine_version: recorded, not compared: an update of a service does not end a collection.
    """

    model: str
    revision: str | None
    hidden_size: int
    dtype: str
    generation_defaults: Mapping[str, Any] | None = None
    engine: str | None = None
    engine_version: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, info: InfoResponse) -> ModelIdentity:
        """Take the identity from a replica's `/info`."""
        return cls(
            info.model,
            info.revision,
            info.hidden_size,
            info.dtype,
            info.generation_defaults,
            info.engine,
            info.engine_version,
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
            value.get("engine"),
            value.get("engine_version"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the identity as JSON values."""
        value = asdict(self)
        for name in ("generation_defaults", "engine", "engine_version"):
            if value[name] is None:
                del value[name]
        return value

    def __str__(self) -> str:
        """Describe the model in a message."""
        revision = f" at {self.revision}" if self.revision else ""
        defaults = f", {dict(self.generation_defaults)}" if self.generation_defaults else ""
        engine = f", engine {self.engine}" if self.engine else ""
        facts = f"hidden size {self.hidden_size}, {self.dtype}{engine}{defaults}"
        return f"{self.model!r}{revision} ({facts})"
