"""What a model's directory or config is, when it is no decoder that can be served.

Each refusal says what the thing is and what would work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from latentwire_service.engine.errors import (
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf.loading.weight_files import WEIGHT_FILES

ADAPTER_FILE = "adapter_config.json"
_TOKENIZER_FILES = (
    *("tokenizer*", "tokenization*", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    "tekken.json",
)
_WANTED = "a directory in Hugging Face format has config.json, model.safetensors and a tokenizer"

# A file that a directory without config.json or without weights has, and what it shows.
_OTHER_FORMATS = {
    "model_index.json": "a diffusers pipeline, which makes no text",
    "modules.json": "a sentence-transformers model, which makes embeddings and no text",
    "params.json": "a model in the format of its maker; look for its version in Hugging Face "
    "format",
    "*.onnx": "a model for ONNX; serve the model that it was exported from",
    "onnx/*.onnx": "a model for ONNX; serve the model that it was exported from",
    "tf_model.h5": "a model with weights for TensorFlow only; convert them to safetensors",
    "saved_model.pb": "a model for TensorFlow; serve the model that it was exported from",
    "flax_model.msgpack": "a model with weights for Flax only; convert them to safetensors",
    "openvino_model.xml": "a model for OpenVINO; serve the model that it was exported from",
    "*.mlpackage": "a model for Core ML; serve the model that it was exported from",
    "weights.npz": "a model for MLX; serve the model that it was converted from",
    "*.pte": "a model for ExecuTorch; serve the model that it was exported from",
    "*.engine": "a model for TensorRT; serve the model that it was built from",
    "consolidated*": "a model in the format of its maker; look for its version in Hugging Face "
    "format",
    "checkpoint-*/config.json": "a training run; name one of its checkpoints, {found}",
    "snapshots/*/config.json": "a folder of the hub's cache; name {found}, or the hub id",
}


def check_folder(folder: Path, model_id: str) -> None:
    """Refuse a local directory that holds no model in Hugging Face format.

    Raises:
        ModelNotFoundError: the directory holds no model, or no tokenizer.
        UnsupportedModelError: it holds a model of another kind.
        DamagedModelError: its config.json cannot be read.
    """
    adapter = folder / ADAPTER_FILE
    if not (folder / "config.json").is_file():
        if adapter.is_file():
            raise _adapter_alone(adapter, model_id)
        raise other_format(folder, model_id) or ModelNotFoundError(
            f"{model_id} {_content_without_config(folder)}: {_WANTED}"
        )
    if adapter.is_file():
        raise _adapter_in_model(model_id)
    _read_config(folder, model_id)


def check_tokenizer_files(folder: Path, model_id: str) -> None:
    """Refuse a local model without a tokenizer.

    Raises:
        ModelNotFoundError: no file of a tokenizer is there.
    """
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise ModelNotFoundError(
            f"{model_id} cannot be loaded: it has no tokenizer (tokenizer.json and "
            "tokenizer_config.json); copy them from the model that it was made from"
        )


def check_hub_adapter(location: str, revision: str | None, *, offline: bool = False) -> None:
    """Refuse a model of the hub that is an adapter, or has one.

    Whether transformers applies an adapter depends on whether peft is installed.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "local_files_only": offline,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    adapter = cached_file(location, ADAPTER_FILE, **options)
    if adapter is None:
        return
    if cached_file(location, "config.json", **options) is None:
        raise _adapter_alone(Path(adapter), location)
    raise _adapter_in_model(location)


def check_config(config: Mapping[str, Any], model_id: str, *, trust_remote_code: bool) -> None:
    """Refuse a config that this version of transformers cannot use, or not without permission."""
    if not config.get("model_type") and "auto_map" not in config:
        raise UnsupportedModelError(
            f"{model_id} cannot be loaded: its config.json names no architecture (`model_type`); "
            "it is not of a model in Hugging Face format"
        )
    _check_type(config, model_id)
    is_own = config.get("model_type") not in CONFIG_MAPPING
    if is_own and "auto_map" in config and not trust_remote_code:
        raise UnsupportedModelError(
            f"{model_id} cannot be loaded: it comes with Python code of its own; read the code, "
            "then allow it with --trust-remote-code"
        )


def check_is_decoder(config: PreTrainedConfig, model_id: str) -> None:
    """Refuse an architecture that reads more than text, or makes no text token by token."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(
            model_id, f"{kind} is an encoder-decoder; only decoder-only models are served"
        )
    auto_map = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in auto_map:
        return
    is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not (
        is_causal and getattr(config, "is_decoder", False)
    ):
        raise _refused(
            model_id,
            f"{kind} is an encoder, which makes no text; only decoder-only models are served",
        )
    if not is_causal:
        inputs = _other_inputs(config)
        raise _refused(
            model_id,
            f"{kind} is a model of text and {inputs}; only text models are served, for instance "
            "the one that it was built on"
            if inputs
            else f"{kind} makes no text token by token; only decoder-only models are served",
        )


def _check_type(config: Mapping[str, Any], model_id: str) -> None:
    model_type = config.get("model_type")
    if model_type is not None and model_type not in CONFIG_MAPPING and "auto_map" not in config:
        raise UnsupportedModelError(
            f"{model_id} cannot be loaded: transformers {transformers.__version__} does not know "
            f"its architecture, {model_type}"
        )


def _other_inputs(config: PreTrainedConfig) -> str:
    kinds = {"vision_config": "images", "audio_config": "sound", "thinker_config": "sound"}
    found = [name for field, name in kinds.items() if getattr(config, field, None) is not None]
    return " and ".join(dict.fromkeys(found))


def _refused(model_id: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{model_id} cannot be served: {reason}")


def _read_config(folder: Path, model_id: str) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedModelError(
            f"{model_id} cannot be loaded: its config.json is not JSON ({error})"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{model_id} cannot be loaded: its config.json cannot be read ({error.strerror})"
        ) from error
    if not isinstance(config, dict):
        raise DamagedModelError(f"{model_id} cannot be loaded: its config.json is no JSON object")


def _adapter_alone(file: Path, model_id: str) -> UnsupportedModelError:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, base = str(config["peft_type"]), str(config["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        kind, base = "PEFT", "its base model"
    return UnsupportedModelError(
        f"{model_id} is an adapter ({kind}), not a model: merge it into {base} with "
        "`merge_and_unload` of peft, save the result with its tokenizer, and serve that"
    )


def _adapter_in_model(model_id: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{model_id} holds both a model and an adapter ({ADAPTER_FILE}), so what it should answer "
        "is not clear: merge the adapter into the model, or leave its files out of the directory"
    )


def other_format(folder: Path, model_id: str) -> UnsupportedModelError | None:
    """Return the refusal of a directory in a known format of others; None when none is known."""
    for pattern, what in _OTHER_FORMATS.items():
        found = min(folder.glob(pattern), default=None)
        if found is not None:
            name = found.parent.relative_to(folder).as_posix()
            return UnsupportedModelError(f"{model_id} is {what.replace('{found}', name)}")
    return None


def _content_without_config(folder: Path) -> str:
    def is_there(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    if not is_there("*"):
        return "is an empty directory"
    if any(is_there(name) for name in WEIGHT_FILES):
        return "has weights, but no config.json"
    if any(is_there(pattern) for pattern in _TOKENIZER_FILES):
        return "holds a tokenizer, but no model"
    return "holds no model"
