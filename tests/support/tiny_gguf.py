"""A GGUF file of a tiny random model, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
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
    extra: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str | float | int] | None = None,
) -> None:
    """Write a Qwen2 or Llama model in float32.

    Args:
        file: shards add their numbers to its name.
        model: the model.
        without: the name of a weight that is left out.
        tensors_per_shard: 0 for one file.
        has_tokenizer: whether the file holds the tokenizer.
        extra: further tensors.
        metadata: further entries, without the name of the architecture.
    """
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(file, config.model_type, split_max_tensors=tensors_per_shard)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (metadata or {}).items():
        kind = {str: "string", float: "float32", int: "uint32"}[type(value)]
        getattr(writer, f"add_{kind}")(f"{config.model_type}.{name}", value)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    if has_tokenizer:
        _add_tokenizer(writer)
        if config.model_type == "llama":
            # transformers 5.16 reads it without looking whether it is there.
            writer.add_bos_token_id(EOS)
    for name, tensor in model.state_dict().items():
        if name != without and not (name == "lm_head.weight" and config.tie_word_embeddings):
            writer.add_tensor(_gguf_name(name), _stored(name, tensor.float().cpu().numpy(), config))
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


def _stored(name: str, values: Any, config: Any) -> Any:
    """Return a tensor as files store it: they alternate the halves of Llama's heads."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if config.model_type != "llama" or count is None:
        return values
    halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[part]}.{kind}"
