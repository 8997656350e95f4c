"""GGUF files as safetensors: converted once per content, into the cache.

A conversion is complete or not there: its weights are checked, and one rename puts it in place.
Conversions that nobody used for `KEPT_DAYS` days are removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, modeling_gguf_pytorch_utils

from latentwire_service.engine.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from latentwire_service.engine.hf.loading.content_key import content_key
from latentwire_service.engine.hf.loading.explained import explained
from latentwire_service.engine.hf.loading.gguf_rope import ROPE_TENSORS, apply_rope
from latentwire_service.engine.hf.loading.gguf_shards import GgufModel, read_model, write_merged
from latentwire_service.engine.hf.loading.weights import load_complete

logger = logging.getLogger(__name__)

KEPT_DAYS = 30
# Part of the key: raise it when conversions change.
_FORMAT = 3
# Lists the other files with their sizes.
_INVENTORY = "conversion.json"
# No conversion takes this long, so an older folder was left by a process that was killed.
_STALE_SCRATCH_S = 24 * 3600
_SHOWN_NAMES = 3
_BLOCK = re.compile(r"blk\.(\d+)\.")
_HINT = "; conversions are written to --cache-dir"


def converted_gguf(file: Path, cache_dir: Path) -> tuple[str, Path]:
    """Convert a model, given any one of its files, unless the cache has it.

    Returns:
        The model's name, and the directory with its weights and tokenizer.

    Raises:
        ModelNotFoundError: a shard or the tokenizer is missing.
        DamagedModelError: a file or a weight is not complete.
        UnsupportedModelError: the format or the architecture cannot be read.
        ModelError: the cache cannot be written.
    """
    failure = f"{file.name} cannot be converted"
    folder = cache_dir / "gguf"
    _make_folder(folder, failure)
    with explained(failure):
        model = read_model(file)
    if not model.shards[0].fields.get("tokenizer.ggml.tokens"):
        raise ModelNotFoundError(f"{failure}: it has no tokenizer; use a file that has one")
    with explained(failure):
        target = folder / content_key(model.files, cache_dir / "gguf-digests", f"{_FORMAT}")
    if not _is_complete(target):
        logger.info("converting %s to safetensors, once", model.name)
        _convert_gguf(model, target)
    with suppress(OSError):
        os.utime(target)
    _prune(folder, target)
    return model.model_id, target


def _make_folder(folder: Path, failure: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{failure}: --cache-dir cannot be written: {os.strerror(error.errno or 0)}"
        ) from error


def _convert_gguf(model: GgufModel, target: Path) -> None:
    """Write the weights as float32 safetensors, with tokenizer, in one atomic rename."""
    with explained(f"{model.name} cannot be converted", hint=_HINT):
        if target.exists():
            # Something took a file away. Move it first: another process may be about to read it.
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
            target.rename(aside / target.name)
            shutil.rmtree(aside, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            _write_converted(model, scratch)
            _sync(scratch)
            scratch.rename(target)
        except OSError:
            # Two replicas that start together both convert. The second uses the first's result.
            if not _is_complete(target):
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_converted(model: GgufModel, folder: Path) -> None:
    file = model.files[0]
    if len(model.files) > 1:
        file = folder / "merged.gguf"
        write_merged(model, file)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    failure = f"{model.name} cannot be converted"
    with _without_progress_bar(), _tensor_names() as known:
        loaded = load_complete(
            str(file.parent),
            failure,
            gguf_file=file.name,
            dtype=torch.float32,
            **_dequantize_options(),
        )
    _check_tensors(model, loaded, known, failure)
    apply_rope(model, loaded, failure)
    loaded.save_pretrained(folder)
    if len(model.files) > 1:
        file.unlink()
    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
    (folder / _INVENTORY).write_text(json.dumps({"files": sizes}), encoding="utf-8")


def _check_tensors(model: GgufModel, loaded: Any, known: Collection[str], failure: str) -> None:
    """Refuse tensors that transformers leaves out, such as biases that its model does not have."""
    if not known:
        return
    names = [tensor.name for shard in model.shards for tensor in shard.tensors]
    fields = model.shards[0].fields
    num_further = fields.get(f"{fields.get('general.architecture', '')}.nextn_predict_layers", 0)
    num_layers = loaded.config.get_text_config().num_hidden_layers if num_further else None
    dropped = [
        name
        for name in names
        if not {name, name.removesuffix(".weight")} & {*known}
        and not _is_elsewhere(name, loaded.config.model_type)
        and not _is_derived(name, num_layers)
    ]
    if dropped:
        shown = ", ".join(sorted(dropped)[:_SHOWN_NAMES])
        more = f" and {len(dropped) - _SHOWN_NAMES} more" if len(dropped) > _SHOWN_NAMES else ""
        raise UnsupportedModelError(
            f"{failure}: it holds {shown}{more}, which {type(loaded).__name__} computes without; "
            "serve its version in Hugging Face format instead"
        )


def _is_elsewhere(name: str, model_type: str) -> bool:
    """Whether something other than the map of names reads the tensor."""
    if name in ROPE_TENSORS:
        return True
    if model_type == "gpt2":
        return name == "output.weight"
    return model_type == "gpt_oss" and "_projs." in name


def _is_derived(name: str, num_layers: int | None) -> bool:
    """Whether the model does not need the tensor: it follows from others, or predicts further.

    Args:
        name: of the tensor.
        num_layers: those after it predict several tokens; None when there are no such layers.
    """
    if name.startswith("rope.freqs") or ".attn_rot_embd" in name or ".nextn." in name:
        return True
    found = _BLOCK.match(name)
    return found is not None and num_layers is not None and int(found[1]) >= num_layers


def _is_complete(folder: Path) -> bool:
    """Whether a conversion has all the files that were written."""
    try:
        sizes = json.loads((folder / _INVENTORY).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _sync(folder: Path) -> None:
    """Put all files on the disk before the rename, so that a power cut leaves no empty ones."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(folder: Path, used: Path) -> None:
    """Remove conversions that nobody used lately, and what killed processes left.

    Each use sets the directory's time. A process that has its files open keeps them.
    """
    for path in folder.glob("*"):
        limit_s = _STALE_SCRATCH_S if path.name.startswith(".") else KEPT_DAYS * 24 * 3600
        with suppress(OSError):
            if path != used and time.time() - path.stat().st_mtime > limit_s:
                logger.info("removing %s from --cache-dir: not used lately", path.name)
                shutil.rmtree(path, ignore_errors=True)


def _dequantize_options() -> dict[str, Any]:
    """Return options that make transformers unpack quantized weights; 5.16 always does."""
    gguf_config = getattr(transformers, "GgufConfig", None)
    return {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}


@contextmanager
def _tensor_names() -> Iterator[set[str]]:
    """Collect the names of the tensors that transformers finds a place for."""
    module: Any = modeling_gguf_pytorch_utils
    mapping = getattr(module, "get_gguf_hf_weights_map", None)
    known: set[str] = set()
    if mapping is None:
        yield known
        return

    def watched(*args: Any, **options: Any) -> Any:
        # It calls itself for every part; the last result is that of the whole model.
        result = mapping(*args, **options)
        known.clear()
        known.update(result)
        return result

    module.get_gguf_hf_weights_map = watched
    try:
        yield known
    finally:
        module.get_gguf_hf_weights_map = mapping


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the progress bar that transformers draws while it reads a GGUF file.

    The bar ignores transformers' own switch, because it comes from tqdm directly.
    """
    module: Any = modeling_gguf_pytorch_utils
    drawn = getattr(module, "tqdm", None)
    if drawn is None:
        yield
        return
    module.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        module.tqdm = drawn
