"""From settings to the arguments of vLLM's engine. Knows their names, and imports no vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from latentwire_service.engine.errors import ModelError
from latentwire_service.settings import Settings

# Versions that the tests ran with.
TESTED_VERSIONS = ("0.32",)
# The service sets these itself, or another flag does.
_OWN_ARGS: Mapping[str, str] = {
    "model": "use --model",
    "tokenizer": "it is the model's own",
    "skip_tokenizer_init": "the service tokenizes",
    "served_model_name": "it is the name of --model",
    "revision": "use --revision",
    "trust_remote_code": "use --trust-remote-code",
    "dtype": "use --dtype",
    "max_model_len": "use --max-model-len",
    "max_num_seqs": "use --max-slots",
    "tensor_parallel_size": "use --tensor-parallel-size",
    "pipeline_parallel_size": "use --pipeline-parallel-size",
    "gpu_memory_utilization": "use --gpu-memory-utilization",
    "quantization": "use --quantization",
    "worker_extension_cls": "hidden rows need it",
    "runner": "only generation has plans",
    "convert": "only generation has plans",
    "max_num_active_seqs": "use --max-slots",
    "max_num_queued_reqs": "use --max-queue",
    "max_num_queued_tokens": "use --max-queue",
    "generation_config": "the service applies it",
    "override_generation_config": "the service applies the model's own",
}
# Hidden rows are not right with these.
_REFUSED_ARGS: Mapping[str, str] = {
    "speculative_config": "with speculative decoding, hidden rows would belong to drafts",
    "diffusion_config": "hidden rows belong to tokens that come one after the other",
    "data_parallel_size": "start one service per replica",
    "enable_lora": "requests cannot name an adapter",
}
_REFUSED_PREFIXES: Mapping[str, str] = {
    "spec_": _REFUSED_ARGS["speculative_config"],
    "speculative": _REFUSED_ARGS["speculative_config"],
    "data_parallel": _REFUSED_ARGS["data_parallel_size"],
}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DEFAULT_MAX_MODEL_LEN = 4096
# On a CPU, vLLM would take a fraction of all memory, whether it is free or not.
DEFAULT_CPU_CACHE_BYTES = 4 * 2**30


def parse_engine_args(given: Sequence[str], known: Collection[str]) -> dict[str, Any]:
    """Read the values of `--engine-arg`.

    Args:
        given: texts of the form KEY=VALUE. A value is JSON, or else a text.
        known: names of vLLM's arguments.

    Raises:
        ModelError: the form is another one, or the argument is unknown or refused.
    """
    parsed: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not separator or not name:
            raise ModelError(f"--engine-arg {text!r} does not have the form KEY=VALUE")
        reason = _refusal(name)
        if reason is not None:
            raise ModelError(f"--engine-arg cannot set {name}: {reason}")
        if name not in known:
            raise ModelError(f"--engine-arg {name}: vLLM has no argument of that name")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def engine_args(
    settings: Settings,
    known: Collection[str],
    *,
    location: str,
    revision: str | None,
    device: str,
    model_max_len: int | None,
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine.

    Args:
        settings: of the service.
        known: names of vLLM's arguments.
        location: hub id or directory of the model.
        revision: commit of a hub model.
        device: `cpu`, `cuda` or another kind.
        model_max_len: positions that the model's config allows; None: it does not say.

    Raises:
        ModelError: as `parse_engine_args`.
    """
    extra = parse_engine_args(settings.engine_arg, known)
    args: dict[str, Any] = {
        "model": location,
        "revision": revision,
        "trust_remote_code": settings.trust_remote_code,
        "skip_tokenizer_init": True,
        "dtype": _dtype(settings.dtype, device),
        "max_model_len": _max_model_len(settings, model_max_len),
        "max_num_seqs": None if settings.max_slots == "auto" else settings.max_slots,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "quantization": settings.quantization,
        "disable_log_stats": True,
    }
    if "prefill_chunk" in settings.model_fields_set:
        # Requests that decode take a token each of the same budget.
        num_slots = args["max_num_seqs"] or 0
        args["max_num_batched_tokens"] = max(settings.prefill_chunk, num_slots)
    if device == "cpu" and settings.gpu_memory_utilization is None:
        args["kv_cache_memory_bytes"] = DEFAULT_CPU_CACHE_BYTES
    return {name: value for name, value in args.items() if value is not None} | extra


def _refusal(name: str) -> str | None:
    if name in _OWN_ARGS:
        return _OWN_ARGS[name]
    if name in _REFUSED_ARGS:
        return _REFUSED_ARGS[name]
    prefixes = [prefix for prefix in _REFUSED_PREFIXES if name.startswith(prefix)]
    return _REFUSED_PREFIXES[prefixes[0]] if prefixes else None


def _dtype(name: str, device: str) -> str:
    """Return the dtype; on a GPU, `auto` is the one that vLLM takes from the checkpoint."""
    if name == "auto":
        return "float32" if device == "cpu" else "auto"
    return _DTYPES[name]


def _max_model_len(settings: Settings, model_max_len: int | None) -> int:
    if settings.max_model_len != "auto":
        return settings.max_model_len
    return min(DEFAULT_MAX_MODEL_LEN, model_max_len or DEFAULT_MAX_MODEL_LEN)
