"""Shapes of published models, written out so that nothing is downloaded, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from latentwire_service.engine.hf.loader import DTYPES

# Nothing ends a sequence early, so that every contender generates the same number of tokens.
_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

MODELS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "qwen2.5-0.5b": partial(
        Qwen2Config,
        **_SPECIAL,
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": partial(
        Qwen2Config,
        **_SPECIAL,
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
    ),
    "llama-3.1-8b": partial(
        LlamaConfig,
        **_SPECIAL,
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=False,
    ),
    "tiny": partial(
        Qwen2Config,
        **_SPECIAL,
        vocab_size=320,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
}


def build(name: str, device: torch.device, dtype: str) -> Any:
    """Make the model on its device, in eval mode, with random weights."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(MODELS[name](), dtype=DTYPES[dtype])
    return model.eval().requires_grad_(False)
