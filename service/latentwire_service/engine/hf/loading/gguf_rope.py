"""Rotary frequencies of GGUF models, which transformers reads no further than their base.

A file states them as factors (tensors, as of Llama 3.1) or as a method of scaling (metadata). Both
become `rope_parameters` of the config, so that a conversion keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.loading.gguf_format import GgufTensor, Scalar
from latentwire_service.engine.hf.loading.gguf_shards import GgufModel

_FREQUENCIES = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# The names of all tensors that this module reads.
ROPE_TENSORS = frozenset({_FREQUENCIES, _SHORT, _LONG})
# The numbers of the types among GGUF's.
_DTYPES = {0: "<f4", 1: "<f2"}
# Says how a model was trained, and changes no frequency.
_WITHOUT_EFFECT = frozenset({"finetuned"})
_LINEAR = frozenset({"type", "factor"})
_YARN = _LINEAR | {"original_context_length"}
_LONGROPE = frozenset({"type", "original_context_length", "attn_factor"})


def apply_rope(model: GgufModel, loaded: Any, failure: str) -> None:
    """Set the `rope_parameters` of a loaded model's config to what its files say.

    Args:
        model: the files.
        loaded: what transformers made of them.
        failure: the start of messages.

    Raises:
        UnsupportedModelError: the files state frequencies that the config cannot express.
    """
    config = loaded.config
    _check_dimensions(model, loaded, failure)
    changes = _changes(model, config, failure)
    if not changes:
        return
    before = config.rope_parameters
    if isinstance(before, Mapping) and before.get("rope_type", "default") == "default":
        if "rope_theta" in before:
            config.rope_parameters = {**before, **changes}
        elif set(before) == {"full_attention", "sliding_attention"} and _is_linear(changes):
            # As in Gemma 3, whose layers with a window keep their frequencies.
            full = {**before["full_attention"], **changes}
            config.rope_parameters = {**before, "full_attention": full}
    if config.rope_parameters == before or not _rotary_modules(loaded):
        names = sorted(_factors(model, failure)) or ["rope.scaling"]
        raise UnsupportedModelError(
            f"{failure}: {config.model_type} cannot be computed with its {', '.join(names)}; "
            "serve its version in Hugging Face format instead"
        )


def _is_linear(changes: Mapping[str, Any]) -> bool:
    return bool(changes["rope_type"] == "linear")


def _changes(model: GgufModel, config: Any, failure: str) -> dict[str, Any]:
    """Return the entries of `rope_parameters` that differ from the default ones."""
    scaling = _scaling(model)
    factors = _factors(model, failure)
    positions = config.max_position_embeddings
    if factors:
        half = _num_frequencies(config)
        for name, values in factors.items():
            if len(values) != half or not (np.isfinite(values).all() and (values > 0).all()):
                raise UnsupportedModelError(
                    f"{failure}: {name} does not hold {half} positive factors, one per frequency"
                )
    if _FREQUENCIES in factors and not scaling.keys() - {"type"} and len(factors) == 1:
        values = factors[_FREQUENCIES].tolist()
        if all(value == 1 for value in values):
            return {}
        return _longrope(values, values, positions, 1.0)
    if factors.keys() == {_SHORT, _LONG} and scaling.keys() <= _LONGROPE:
        original = int(scaling.get("original_context_length", positions))
        # Without it, transformers computes it from both lengths, as the converters do.
        attention = scaling.get("attn_factor")
        short, long = factors[_SHORT].tolist(), factors[_LONG].tolist()
        return _longrope(short, long, original, attention) | {"factor": positions / original}
    if not factors:
        return _method(scaling, config, failure)
    raise _unknown(failure, [*sorted(factors), *(f"rope.scaling.{key}" for key in scaling)])


def _longrope(
    short: Sequence[float], long: Sequence[float], original: int, attention: Any
) -> dict[str, Any]:
    """Divide every frequency by its own factor; the method that transformers has for it."""
    chosen: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": original,
    }
    return chosen if attention is None else chosen | {"attention_factor": float(attention)}


def _method(scaling: Mapping[str, Scalar], config: Any, failure: str) -> dict[str, Any]:
    kind = scaling.get("type", "linear" if "factor" in scaling else "none")
    factor = float(scaling.get("factor", 1.0))
    # gpt-oss is the one architecture for which transformers reads it.
    if kind == "none" or config.model_type == "gpt_oss":
        return {}
    if kind == "linear" and scaling.keys() <= _LINEAR and factor > 0:
        return {} if factor == 1 else {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and scaling.keys() == _YARN and factor >= 1:
        original = int(scaling["original_context_length"])
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    raise _unknown(failure, [f"rope.scaling.{key}={value}" for key, value in scaling.items()])


def _unknown(failure: str, names: Sequence[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{failure}: its rotary frequencies are not known: {', '.join(names)}; serve its version "
        "in Hugging Face format instead"
    )


def _scaling(model: GgufModel) -> dict[str, Scalar]:
    """Return the metadata on scaling, by the last part of its names."""
    fields = model.shards[0].fields
    prefix = f"{fields.get('general.architecture', '')}.rope."
    found = {
        name.removeprefix(f"{prefix}scaling."): value
        for name, value in fields.items()
        if name.startswith(f"{prefix}scaling.")
    }
    # The name of an older format.
    if f"{prefix}scale_linear" in fields:
        found.setdefault("factor", fields[f"{prefix}scale_linear"])
    return {name: value for name, value in found.items() if name not in _WITHOUT_EFFECT}


def _factors(model: GgufModel, failure: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the factors by which frequencies are divided, by their tensors' names."""
    found = {}
    for shard in model.shards:
        for tensor in shard.tensors:
            if tensor.name in ROPE_TENSORS:
                with shard.file.open("rb") as stream:
                    stream.seek(tensor.start)
                    content = stream.read(tensor.num_bytes)
                found[tensor.name] = _values(tensor, content, failure)
    return found


def _values(tensor: GgufTensor, content: bytes, failure: str) -> np.ndarray[Any, Any]:
    dtype = _DTYPES.get(tensor.kind)
    if dtype is None:
        raise UnsupportedModelError(f"{failure}: {tensor.name} is quantized")
    return np.frombuffer(content, dtype).astype(np.float64)


def _num_frequencies(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    size = head_dim or config.hidden_size // config.num_attention_heads
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return int(size * share) // 2


def _rotary_modules(loaded: Any) -> list[Any]:
    return [module for module in loaded.modules() if hasattr(module, "rope_type")]


def _check_dimensions(model: GgufModel, loaded: Any, failure: str) -> None:
    """Refuse a model that rotates another part of each head than its file says."""
    fields = model.shards[0].fields
    stated = fields.get(f"{fields.get('general.architecture', '')}.rope.dimension_count")
    for module in _rotary_modules(loaded):
        frequencies = getattr(module, "inv_freq", None)
        if stated is None or not isinstance(frequencies, torch.Tensor):
            continue
        if 2 * frequencies.numel() != stated:
            raise UnsupportedModelError(
                f"{failure}: its rope.dimension_count is {stated}, but {loaded.config.model_type} "
                f"would rotate {2 * frequencies.numel()}; serve its version in Hugging Face format "
                "instead"
            )
