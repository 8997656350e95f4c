"""From settings to the arguments of vLLM's engine. Knows their names, and imports no vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire_service.engine.errors import ModelError
from latentwire_service.settings import Settings
from latentwire_service.vllm_engine.argument_table import ALLOWED, refusal, value_refusal

# Versions that the tests ran with.
TESTED_VERSIONS = ("0.32",)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DEFAULT_MAX_MODEL_LEN = 4096
# On a CPU, vLLM would take a fraction of all memory, whether it is free or not.
DEFAULT_CPU_CACHE_BYTES = 4 * 2**30
# vLLM keeps the tokens of this many sequences at their full length, whether they run or not.
MAX_SLOTS = 8192
# Tokens that vLLM computes in one step by default.
_VLLM_STEP_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the sizes of an engine have to fit. None: the model's config does not say.

    Attributes:
        max_positions: positions that the config allows.
        is_stretched: whether the rotary frequencies are scaled for longer sequences.
        num_heads: attention heads of a layer.
        num_layers: layers.
    """

    max_positions: int | None = None
    is_stretched: bool = False
    num_heads: int | None = None
    num_layers: int | None = None


def parse_engine_args(given: Sequence[str], known: Collection[str]) -> dict[str, Any]:
    """Read the values of `--engine-arg`.

    Args:
        given: texts of the form KEY=VALUE. A value is JSON, or else a text.
        known: names of vLLM's arguments.

    Raises:
        ModelError: the form is another one, or the argument or its value is unknown or refused.
    """
    parsed: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not separator or not name:
            raise ModelError(f"--engine-arg {text!r} does not have the form KEY=VALUE")
        reason = refusal(name)
        if reason is not None:
            raise ModelError(f"--engine-arg cannot set {name}: {reason}")
        if name not in known:
            raise ModelError(f"--engine-arg {name}: this vLLM has no argument of that name")
        if name not in ALLOWED:
            raise ModelError(
                f"--engine-arg cannot set {name}: this version of latentwire does not know what it "
                "does to hidden rows"
            )
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
        reason = value_refusal(name, parsed[name])
        if reason is not None:
            raise ModelError(f"--engine-arg: {reason}")
    return parsed


def check_sizes(settings: Settings, shape: ModelShape, num_devices: int | None) -> None:
    """Compare the sizes that flags give with the model and the machine.

    Args:
        settings: of the service.
        shape: of the model.
        num_devices: GPUs that this process sees; None: they do not limit the engine.

    Raises:
        ModelError: a size cannot be had; the message names its flag and the limit.
    """
    if settings.max_slots != "auto" and settings.max_slots > MAX_SLOTS:
        raise ModelError(
            f"--max-slots {settings.max_slots}: the vLLM engine has {MAX_SLOTS} slots at most"
        )
    limit, length = shape.max_positions, settings.max_model_len
    if length != "auto" and limit is not None and length > limit and not shape.is_stretched:
        raise ModelError(f"--max-model-len {length}: the model reads {limit} positions at most")
    shares, stages = settings.tensor_parallel_size or 1, settings.pipeline_parallel_size or 1
    if shape.num_heads is not None and shape.num_heads % shares:
        raise ModelError(
            f"--tensor-parallel-size {shares}: the {shape.num_heads} attention heads of a layer "
            "cannot be shared equally"
        )
    if shape.num_layers is not None and stages > shape.num_layers:
        raise ModelError(
            f"--pipeline-parallel-size {stages}: the model has {shape.num_layers} layers"
        )
    if num_devices is not None and shares * stages > num_devices:
        names = [
            f"--{name}-parallel-size {size}"
            for name, size in (("tensor", shares), ("pipeline", stages))
            if size > 1
        ]
        needed = f"{shares * stages} GPUs are needed"
        raise ModelError(f"{' with '.join(names)}: {needed}, and this process sees {num_devices}")


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
    # A step computes one token for each request that decodes.
    num_slots = args["max_num_seqs"] or 0
    if "prefill_chunk" in settings.model_fields_set:
        args["max_num_batched_tokens"] = max(settings.prefill_chunk, num_slots)
    elif num_slots > _VLLM_STEP_TOKENS:
        args["max_num_batched_tokens"] = num_slots
    if device == "cpu" and settings.gpu_memory_utilization is None:
        args["kv_cache_memory_bytes"] = DEFAULT_CPU_CACHE_BYTES
    return {name: value for name, value in args.items() if value is not None} | extra


def _dtype(name: str, device: str) -> str:
    """Return the dtype; on a GPU, `auto` is the one that vLLM takes from the checkpoint."""
    if name == "auto":
        return "float32" if device == "cpu" else "auto"
    return _DTYPES[name]


def _max_model_len(settings: Settings, model_max_len: int | None) -> int:
    if settings.max_model_len != "auto":
        return settings.max_model_len
    return min(DEFAULT_MAX_MODEL_LEN, model_max_len or DEFAULT_MAX_MODEL_LEN)
