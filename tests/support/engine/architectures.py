"""Small configurations of the architectures that the engine serves, one per family or variant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers as hf

from support.tiny_models import EOS, VOCAB_SIZE

ConfigBuilder = Callable[[], hf.PreTrainedConfig]

HIDDEN_SIZE = 48
WINDOW = 20
# Shorter and longer than the window, and than one bucket of the KV cache.
LENGTHS = [1, 5, 17, 40, 70, 65, 30]

# The same few numbers under the names that families give them.
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS}
BASE = SPECIAL | {"vocab_size": VOCAB_SIZE, "initializer_range": 0.6}
LLAMA_LIKE = BASE | {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT2_LIKE = BASE | {"n_embd": HIDDEN_SIZE, "n_layer": 3, "n_head": 6, "n_positions": 512}
FALCON_LIKE = BASE | {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 3, "num_attention_heads": 6}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 256,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}


def llama_like(config_class: Any, **changes: Any) -> ConfigBuilder:
    return partial(config_class, **(LLAMA_LIKE | changes))


SERVED: dict[str, ConfigBuilder] = {
    "llama": llama_like(hf.LlamaConfig),
    "llama-biases": llama_like(hf.LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama-dynamic-rope": llama_like(
        hf.LlamaConfig, rope_parameters=DYNAMIC, max_position_embeddings=256
    ),
    "qwen2": llama_like(hf.Qwen2Config),
    "qwen2-window": llama_like(
        hf.Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": llama_like(hf.Qwen3Config, head_dim=16),
    "mistral": llama_like(hf.MistralConfig, sliding_window=WINDOW),
    "gemma2": llama_like(
        hf.Gemma2Config,
        **GEMMA,
        sliding_window=WINDOW,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": llama_like(
        hf.Gemma3TextConfig,
        **GEMMA,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi": llama_like(hf.PhiConfig),
    "phi3": llama_like(hf.Phi3Config, sliding_window=WINDOW),
    "phi3-longrope": llama_like(
        hf.Phi3Config,
        rope_parameters=LONGROPE,
        max_position_embeddings=1024,
        original_max_position_embeddings=256,
    ),
    "gpt2": partial(hf.GPT2Config, **GPT2_LIKE),
    "gpt-bigcode": partial(hf.GPTBigCodeConfig, **GPT2_LIKE),
    "gpt-j": partial(hf.GPTJConfig, **GPT2_LIKE, rotary_dim=4),
    "gpt-neox": llama_like(hf.GPTNeoXConfig),
    "opt": partial(
        hf.OPTConfig,
        **(SPECIAL | {"vocab_size": VOCAB_SIZE, "init_std": 0.6, "ffn_dim": 96}),
        hidden_size=HIDDEN_SIZE,
        word_embed_proj_dim=HIDDEN_SIZE,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=512,
    ),
    "bloom": partial(hf.BloomConfig, **BASE, hidden_size=HIDDEN_SIZE, n_layer=3, n_head=6),
    "olmo2": llama_like(hf.Olmo2Config),
    "falcon": partial(hf.FalconConfig, **FALCON_LIKE),
    "falcon-grouped": partial(
        hf.FalconConfig, **FALCON_LIKE, new_decoder_architecture=True, num_kv_heads=2
    ),
    "stablelm": llama_like(hf.StableLmConfig),
    "granite": llama_like(
        hf.GraniteConfig,
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        embedding_multiplier=3.0,
        logits_scaling=4.0,
    ),
    "smollm3": llama_like(hf.SmolLM3Config, no_rope_layer_interval=2),
    "cohere": llama_like(hf.CohereConfig),
    "cohere2": llama_like(hf.Cohere2Config, sliding_window=WINDOW),
    "starcoder2": llama_like(hf.Starcoder2Config, sliding_window=WINDOW),
    "mixtral": llama_like(hf.MixtralConfig, num_local_experts=4, sliding_window=WINDOW),
    "qwen2-moe": llama_like(
        hf.Qwen2MoeConfig, **EXPERTS, num_experts=4, shared_expert_intermediate_size=32
    ),
    "olmoe": llama_like(hf.OlmoeConfig, num_experts=4, num_experts_per_tok=2),
    # Keys and values of different widths, from one compressed projection.
    "deepseek-v3": llama_like(
        hf.DeepseekV3Config,
        **EXPERTS,
        num_key_value_heads=6,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
    # Attention sinks.
    "gpt-oss": llama_like(
        hf.GptOssConfig,
        head_dim=16,
        sliding_window=WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    ),
    # Chunked attention.
    "llama4": llama_like(
        hf.Llama4TextConfig,
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=16,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        moe_layers=[1],
        no_rope_layers=[1, 0, 1],
    ),
}
