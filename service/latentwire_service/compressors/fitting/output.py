"""The directory of a compressor, as `latentwire.compressors.directory` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from latentwire.compressors.manifest import MANIFEST_NAME, TENSORS_NAME, CompressorManifest
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.training import Tensors

CARD_NAME = "README.md"


def check_output(directory: Path, may_overwrite: bool) -> None:
    """Refuse a directory that holds a compressor.

    Args:
        directory: to write to.
        may_overwrite: whether to accept it.

    Raises:
        BridgeError: it holds one.
    """
    if (directory / MANIFEST_NAME).exists() and not may_overwrite:
        raise BridgeError("--output-dir: holds a compressor", "--overwrite replaces it.")


def rounded(tensors: Tensors, is_half: bool) -> Tensors:
    """Return tensors on the CPU as they are stored: in half precision only if it holds all values.

    Args:
        tensors: by name.
        is_half: whether half precision is wanted.
    """
    limit = torch.finfo(torch.float16).max
    fits = all(float(each.abs().max()) <= limit for each in tensors.values() if each.numel())
    dtype = torch.float16 if is_half and fits else torch.float32
    return {name: each.detach().to("cpu", dtype).contiguous() for name, each in tensors.items()}


def save_compressor(
    directory: Path, manifest: CompressorManifest, tensors: Tensors, card: str
) -> None:
    """Write a directory; `compressor.json` comes last, so an unfinished one is never loaded.

    Args:
        directory: exists.
        manifest: the content of `compressor.json`.
        tensors: on the CPU, in the dtype to store.
        card: the content of `README.md`.

    Raises:
        OSError: a file cannot be written.
    """
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    scratch = directory / f".{TENSORS_NAME}.new"
    # Written here, because the library gives the file to its owner alone.
    scratch.write_bytes(save(tensors))
    scratch.replace(directory / TENSORS_NAME)
    (directory / CARD_NAME).write_text(card, encoding="utf-8")
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
