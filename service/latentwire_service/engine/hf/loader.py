"""Model names to models: a causal LM with complete weights, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from latentwire_service.engine.errors import DamagedModelError, ModelError, ModelNotFoundError
from latentwire_service.engine.hf.loading.explained import explained, is_unreachable
from latentwire_service.engine.hf.loading.kinds import (
    check_config,
    check_folder,
    check_hub_adapter,
    check_is_decoder,
    check_tokenizer_files,
    other_format,
)
from latentwire_service.engine.hf.loading.sources import ModelSource, resolve
from latentwire_service.engine.hf.loading.weight_files import check_weights, find_weights
from latentwire_service.engine.hf.loading.weights import load_complete
from latentwire_service.engine.hf.vocabulary import checked_eos_token_ids

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's files say about it, for an engine that loads the weights itself.

    Attributes:
        location: hub id or local directory.
        model_id: hub id, or the last part of a path.
        revision: the hub's commit hash; None for local models.
        generation_config: its `generation_config.json`, or what its config says in its place.
        eos_token_ids: the tokens that end generation, as in `generate`.
        max_positions: the longest sequence of the model; None if its config does not state it.
    """

    location: str
    model_id: str
    revision: str | None
    config: PreTrainedConfig
    tokenizer: Any
    generation_config: GenerationConfig
    eos_token_ids: frozenset[int]
    max_positions: int | None


def read_files(
    name: str, *, cache_dir: Path, revision: str | None = None, trust_remote_code: bool = False
) -> ModelFiles:
    """Read everything of a model but its weights.

    Args:
        name: as `load_model`.
        cache_dir: the folder for converted GGUF files.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: as `load_model`.
    """
    source = resolve(name, cache_dir)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load_config(source, options)
    tokenizer = _load_tokenizer(source, options)
    try:
        generation = GenerationConfig.from_pretrained(source.location, revision=revision or "main")
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return ModelFiles(
        location=source.location,
        model_id=source.model_id,
        revision=getattr(config, "_commit_hash", None),
        config=config,
        tokenizer=tokenizer,
        generation_config=generation,
        eos_token_ids=_eos_token_ids(generation, tokenizer),
        max_positions=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


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
        DamagedModelError: the files of the model cannot be read, or weights are missing.
        UnsupportedModelError: the architecture is unknown, a package is missing, or the model is
            not a decoder.
        ModelError: the disk is full, access is denied, or there is not enough memory.
    """
    source = resolve(name, cache_dir)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load_config(source, options)
    tokenizer = _load_tokenizer(source, options)
    failure = f"{source.model_id} cannot be loaded"
    with explained(failure):
        model = load_complete(source.location, failure, dtype=dtype, **options)
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
    """Read a model's config, and refuse what is not a decoder of a known architecture."""
    failure = f"{source.model_id} cannot be loaded"
    if source.folder is not None:
        check_folder(source.folder, source.model_id)
    with explained(failure):
        try:
            config_dict, _ = PreTrainedConfig.get_config_dict(source.location, **options)
        except OSError as error:
            if source.folder is None:
                offline = is_unreachable(error)
                check_hub_adapter(source.location, options["revision"], offline=offline)
            raise
        if source.folder is None:
            # The commit's hash needs no question to the hub for files that are in its cache.
            commit = config_dict.get("_commit_hash") or options["revision"]
            check_hub_adapter(source.location, commit)
    check_config(
        config_dict, source.model_id, trust_remote_code=bool(options.get("trust_remote_code"))
    )
    with explained(failure):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.location, **options)
    check_is_decoder(config, source.model_id)
    if source.folder is not None:
        _check_weight_files(source.folder, config, source.model_id)
    return config


def _check_weight_files(folder: Path, config: PreTrainedConfig, model_id: str) -> None:
    """Refuse a directory without weights, or with a part of them."""
    if getattr(config, "transformers_weights", None):
        return
    first = find_weights(folder)
    if first is None:
        raise other_format(folder, model_id) or ModelNotFoundError(
            f"{model_id} cannot be loaded: it has no weights (model.safetensors, or "
            "model.safetensors.index.json with the files that it names)"
        )
    with explained(f"{model_id} cannot be loaded"):
        check_weights(first, f"{model_id} cannot be loaded")


def _load_tokenizer(source: ModelSource, options: Mapping[str, Any]) -> Any:
    failure = f"{source.model_id} cannot be loaded"
    if source.folder is not None:
        check_tokenizer_files(source.folder, source.model_id)
    with explained(f"{failure}: its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        if not tokenizer("a 1", add_special_tokens=False)["input_ids"]:
            raise DamagedModelError(f"{failure}: its tokenizer has no vocabulary")
    return tokenizer


def _eos_token_ids(generation_config: GenerationConfig | None, tokenizer: Any) -> frozenset[int]:
    eos = getattr(generation_config, "eos_token_id", None)
    if eos is None:
        eos = tokenizer.eos_token_id
    return checked_eos_token_ids(eos)
