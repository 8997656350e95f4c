"""The state of an unfinished fit: one safetensors file, replaced as a whole.

A fit that was killed continues from it. The file holds the settings it was made with, so that a fit
with other settings is not continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.training import Tensors

_NAME = ".fit.safetensors"
# The phase of files that do not state one.
_TRAINING = "training"


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """The state of an unfinished fit.

    Attributes:
        tensors: by name.
        numbers: JSON values in order.
        phase: of the fit, in which it was saved.
    """

    tensors: Tensors
    numbers: list[Any]
    phase: str


class Checkpoint:
    """The unfinished fit of one output directory.

    Args:
        directory: exists.
        settings: JSON values that decide the result.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._path = directory / _NAME
        self._settings = json.dumps(settings, sort_keys=True)

    def save(
        self,
        tensors: Mapping[str, torch.Tensor],
        numbers: Sequence[Any],
        phase: str = _TRAINING,
    ) -> None:
        """Replace the file.

        Args:
            tensors: by name.
            numbers: JSON values.
            phase: of the fit.

        Raises:
            OSError: it cannot be written.
        """
        scratch = self._path.with_suffix(".new")
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"settings": self._settings, "state": json.dumps(numbers), "phase": phase}
        # safetensors refuses tensors that share memory: a clone per tensor.
        stored = {name: value.clone() for name, value in stored.items()}
        save_file(stored, scratch, metadata)
        scratch.replace(self._path)

    def load(self, device: torch.device) -> Saved | None:
        """Return what `save` wrote; None when there is no file.

        Raises:
            BridgeError: the file was made with other settings, or is damaged.
        """
        if not self._path.exists():
            return None
        hint = "--overwrite discards it and starts over."
        try:
            with safe_open(self._path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("settings") != self._settings:
                    raise BridgeError(
                        "--output-dir: holds an unfinished fit with other settings", hint
                    )
                numbers = list(json.loads(metadata["state"]))
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise BridgeError("--output-dir: holds a damaged unfinished fit", hint) from error
        return Saved(tensors, numbers, metadata.get("phase", _TRAINING))

    def discard(self) -> None:
        """Remove the file, if there is one."""
        self._path.unlink(missing_ok=True)
