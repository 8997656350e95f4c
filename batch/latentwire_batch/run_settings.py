"""What makes two runs the same collection: compared before a run goes on, kept in the manifest.

Knows no paths and no addresses: the input is known by its rows, the model by what replicas say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentwire import InfoResponse
from latentwire_batch.config import CollectSettings
from latentwire_batch.tasks.rows import DataIdentity

_MAX_SHOWN_CHARS = 40


@dataclass(frozen=True)
class ModelIdentity:
    """What all replicas of one collection have in common."""

    model: str
    revision: str | None
    hidden_size: int
    dtype: str

    @classmethod
    def of(cls, info: InfoResponse) -> ModelIdentity:
        """Take it from a replica's answer."""
        return cls(info.model, info.revision, info.hidden_size, info.dtype)

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)


def request_settings(
    settings: CollectSettings, data: DataIdentity, seed: int | None
) -> dict[str, Any]:
    """Give the settings that are known before any replica has been asked, as JSON values.

    Args:
        settings: of this run.
        data: the input's rows.
        seed: the dataset's seed; None where any would do, then it is left out.
    """
    wanted: dict[str, Any] = {
        "data": asdict(data),
        "k": settings.k,
        "prompt": settings.prompt,
        "sampling": settings.sampling,
    }
    if seed is not None:
        wanted["seed"] = seed
    if not settings.replica:
        wanted["requested_model"] = _model_name(settings.model)
    return wanted


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Name what differs between a stored run and a wanted one.

    Args:
        stored: settings of the run that is there.
        wanted: settings of this run; what it leaves out is not compared.
        prefix: of the names in the answer.

    Returns:
        One phrase per differing setting; empty when the runs agree.
    """
    found: list[str] = []
    for name, value in wanted.items():
        there = stored.get(name)
        if name == "requested_model" and there is None:
            # That run was given replicas: what they serve is compared instead.
            continue
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            found += differences(there, value, f"{prefix}{name}.")
        elif there != value:
            found.append(f"{prefix}{name} was {_shown(there)}, now {_shown(value)}")
    return found


def _model_name(model: str) -> str:
    """Name the model asked for without the place where it lies."""
    return Path(model).name if Path(model).exists() or model.startswith((".", "/", "~")) else model


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
