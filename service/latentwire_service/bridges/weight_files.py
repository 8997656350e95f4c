"""Tensors of a model directory by name: each is read when it is requested, the others never.

Reads safetensors, one or in parts, and torch's zip files, whose tensors are mapped into memory.
Nothing here knows which tensors there shall be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from latentwire_service.engine.seams.bridge import BridgeError

# In the order of preference: the first that exists is read.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_INDEX_BYTES = 64 << 20


class WeightFiles:
    """The tensors of a directory.

    Args:
        directory: holds `model.safetensors` or `pytorch_model.bin`, or an index of such files.

    Raises:
        BridgeError: there is no such file, or one is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._readers: dict[str, Any] = {}
        for file in _files(directory):
            self._readers |= _opened(file)

    def __iter__(self) -> Iterator[str]:
        """Yield the names as stored."""
        return iter(self._readers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; raises BridgeError when it is no tensor."""
        found = self._readers[name]
        if isinstance(found, torch.Tensor):
            return tuple(found.shape)
        return tuple(_slice(found, name).get_shape())

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU.

        Raises:
            BridgeError: it cannot be read, or holds values that are not finite.
        """
        found = self._readers[name]
        try:
            tensor = found if isinstance(found, torch.Tensor) else found.get_tensor(name)
        except (SafetensorError, OSError, AttributeError) as error:
            raise BridgeError(f"tensor {name} cannot be read") from error
        if not torch.isfinite(tensor).all():
            raise BridgeError(f"tensor {name} holds values that are not finite")
        result: torch.Tensor = tensor
        return result


def _slice(found: Any, name: str) -> Any:
    try:
        return found.get_slice(name)
    except (SafetensorError, OSError, AttributeError) as error:
        raise BridgeError(f"{name} is not a tensor") from error


def _opened(file: Path) -> dict[str, Any]:
    """Return by name what a file holds: tensors, or the open file to read them from."""
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            return dict.fromkeys(list(opened.keys()), opened)
        # Mapped, so that tensors which are not used are not read from disk.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # Damaged files make the libraries raise anything.
        raise BridgeError(
            f"{file.name} is damaged, or holds more than tensors",
            "Files of torch must have the zip format, which torch.save writes since version 1.6.",
        ) from error
    if not isinstance(state, Mapping):
        raise BridgeError(f"{file.name} holds no tensors by name")
    return {str(name): value for name, value in state.items()}


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        is_file = directory.exists()
        raise BridgeError("is a file, not a directory" if is_file else "there is no such directory")
    for name in _SINGLE:
        if (directory / name).is_file():
            return [directory / name]
    for name in _INDEXES:
        if (directory / name).is_file():
            return _parts(directory, directory / name)
    raise BridgeError(f"has neither {' nor '.join(_SINGLE)}")


def _parts(directory: Path, index: Path) -> list[Path]:
    try:
        with index.open("rb") as file:
            content = file.read(_MAX_INDEX_BYTES)
        names = sorted(set(json.loads(content)["weight_map"].values()))
        # A name with a folder in it could lead out of the directory.
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("not a plain file name")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BridgeError(f"{index.name} cannot be read") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise BridgeError(f"has no {', '.join(missing)}")
    return [directory / name for name in names]
