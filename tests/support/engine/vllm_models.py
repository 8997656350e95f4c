"""Tiny models that vLLM can run, and the reference for their answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from support.tiny_models import (
    Generated,
    build_model,
    build_tokenizer,
    generate,
    llama_config,
    qwen2_config,
    save_model,
)

NEEDS_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed here; `make test-vllm` makes an environment for it",
)
# Attention on a CPU has kernels for 32 values per head and more.
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
}
CONFIGS = {"llama": llama_config(**_SHAPE), "qwen2": qwen2_config(**_SHAPE)}
# 10 blocks of 32 positions, the fewest that attention on a CPU takes; 3 layers have keys and values
# of 2 heads with 32 float32 values.
CACHE_POSITIONS = 10 * 32
CACHE_BYTES = CACHE_POSITIONS * 3 * 2 * 2 * 32 * 4
MAX_MODEL_LEN, PREFILL_CHUNK, MAX_SLOTS = 192, 32, 4
# Starts fast, and needs neither a compiler nor a free gigabyte.
ENGINE_ARGS = ("enforce_eager=true", "block_size=32", f"kv_cache_memory_bytes={CACHE_BYTES}")


class Reference:
    """Hugging Face `generate` over one of the tiny models.

    Args:
        kind: of `CONFIGS`.
    """

    def __init__(self, kind: str) -> None:
        import torch

        self._model = build_model(CONFIGS[kind], 0, torch.device("cpu"), torch.float32)
        self._tokenizer = build_tokenizer()

    def generate(self, task: str, max_new_tokens: int, **options: Any) -> Generated:
        prompt = self._tokenizer.encode(task, add_special_tokens=False)
        return generate(self._model, prompt, max_new_tokens, **options)


def body_of(task: str, max_new_tokens: int, **fields: Any) -> dict[str, Any]:
    """A greedy request whose prompt is the task alone."""
    return {
        "task": task,
        "prompt_template": "{task}",
        "chat_template": "none",
        "max_new_tokens": max_new_tokens,
        "temperature": 0,
        **fields,
    }


def save(kind: str, folder: Path) -> Path:
    return save_model(folder, CONFIGS[kind])
