"""A GGUF file of a tiny random model, written tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from support.tiny_models import EOS, VOCAB_SIZE

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    file: Path,
    model: Any,
    *,
    without: str | None = None,
    tensors_per_shard: int = 0,
    has_tokenizer: bool = True,
    rope_factor: float | None = None,
) -> None:
    """Write a Qwen2 model in float32 (its tensors are stored as they are, unlike Llama's).

    Args:
        file: shards add their numbers to its name.
        model: the model.
        without: the name of a weight that is left out.
        tensors_per_shard: 0 for one file.
        has_tokenizer: whether the file holds the tokenizer.
        rope_factor: the value of all factors of rotary frequencies; None for a file without them.
    """
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(file, "qwen2", split_max_tensors=tensors_per_shard)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope_factor is not None:
        writer.add_tensor("rope_freqs.weight", np.full(4, rope_factor, np.float32))
    if has_tokenizer:
        _add_tokenizer(writer)
    for name, tensor in model.state_dict().items():
        if name not in ("lm_head.weight", without):
            writer.add_tensor(_gguf_name(name), tensor.float().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any) -> None:
    gguf = pytest.importorskip("gguf")
    tokens = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<unused{number}>" for number in range(len(tokens), VOCAB_SIZE - 2)]
    # Two merges, because transformers 5.16 reads a list of one as a string. Their pieces are in no
    # test's text.
    tokens += ["~~", "~~~"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in ("<pad>", "<eos>") else normal for token in tokens])
    writer.add_token_merges(["~ ~", "~~ ~"])
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(0)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[part]}.{kind}"
