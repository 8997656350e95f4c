"""Tiny random models and a tokenizer, built from configs: no download, milliseconds to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from support.engine.device import DEVICE, DTYPE
from support.tiny_shape import EOS as EOS
from support.tiny_shape import HIDDEN_SIZE as HIDDEN_SIZE
from support.tiny_shape import MAX_MODEL_LEN
from support.tiny_shape import VOCAB_SIZE as VOCAB_SIZE

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": EOS,
    # Large enough that the greedy choice varies and no two logits are close to a tie.
    "initializer_range": 0.6,
}


def llama_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**_COMMON, **changes})


def qwen2_config(**changes: Any) -> Qwen2Config:
    return Qwen2Config(**{**_COMMON, "tie_word_embeddings": True, **changes})


def build_model(
    config: PreTrainedConfig,
    seed: int = 0,
    device: torch.device = DEVICE,
    dtype: torch.dtype = DTYPE,
) -> Any:
    """A random model; the same config and seed give the same weights, rounded to the dtype.

    Its attention is the eager one: a fused one may leave out a part of the model's formula.
    """
    torch.manual_seed(seed)
    options = {"attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    if dtype != torch.float32:
        # Not `to(dtype)`, which would round the rotary frequencies as well.
        rounded = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
        rounded.load_state_dict(model.state_dict())
        model = rounded
    return model.to(device).eval()


def build_tokenizer() -> Any:
    """Byte-level: every text round-trips, and one character may take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<eos>": EOS}
    vocab |= {symbol: len(vocab) + index for index, symbol in enumerate(alphabet)}
    vocab |= {f"<unused{n}>": n for n in range(len(vocab), VOCAB_SIZE)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def save_model(folder: Path, config: PreTrainedConfig | None = None, seed: int = 0) -> Path:
    """Write a model directory that `--model` takes.

    Without an end token in the config, its tokenizer has none, either: a plan ends at its limit.
    """
    config = config or llama_config()
    model = build_model(config, seed, torch.device("cpu"), torch.float32)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer()
    if getattr(config, "eos_token_id", EOS) is None:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Generated:
    """What Hugging Face `generate` gives for one prompt.

    `hidden_state` is `[L, hidden_size]` float32, as `latentwire.protocol` defines a latent.
    """

    token_ids: list[int]
    hidden_state: npt.NDArray[np.float32]


@torch.inference_mode()
def generate(model: Any, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> Generated:
    """The oracle: greedy `generate`, one prompt at a time, with all hidden states."""
    out = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
        **options,
    )
    rows = torch.cat([step[-1][:, -1, :] for step in out.hidden_states])
    return Generated(out.sequences[0, len(prompt) :].tolist(), rows.float().cpu().numpy())


def random_prompts(
    lengths: list[int], seed: int = 0, vocab_size: int = VOCAB_SIZE
) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, size=length).tolist() for length in lengths]


def save_chat_model(folder: Path) -> Path:
    """Save the model of `save_model` with a chat template."""
    model = save_model(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )
    tokenizer.save_pretrained(model)
    return model
