"""What every contender over vLLM is started with. Importing this module imports vLLM."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from benchmarks.ours import MAX_MODEL_LEN, MAX_SLOTS
from latentwire_service.engine.errors import ModelError

# On a CPU, several contenders share the memory. 64 requests of the default model need
# half of it.
_CPU_CACHE_BYTES = 2**30
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def engine_args(location: str, dtype: str, device: str) -> dict[str, Any]:
    """Return the arguments of vLLM's engine, the same for each contender.

    Args:
        location: hub id or directory of the model.
        dtype: as `--dtypes` names it.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ModelError: the installed vLLM is made for another device.
    """
    made_for = current_platform.device_type
    if device not in ("auto", made_for):
        raise ModelError(f"--device {device}: this vLLM is made for {made_for}")
    args: dict[str, Any] = {
        "model": location,
        "dtype": _DTYPES[dtype],
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_SLOTS,
        "disable_log_stats": True,
    }
    if made_for == "cpu":
        args["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    return args
