"""Attention and mask over slots, registered with Hugging Face under one name.

A model looks both up by the name in its config. Any model that uses the attention interface
therefore runs on slots without a change: its own mask factory (causal, sliding window, chunked) is
evaluated at each row's own positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.cpu.decode_attention import decode_attention, packed_attention

SLOT_ATTENTION = "latentwire_slots"

# Options that models pass to every attention and that slot attention may ignore: dropout is zero in
# eval mode, the window is in the mask, and the rest is for kernels that build their own mask or
# return weights.
_WITHOUT_EFFECT = frozenset(
    {"dropout", "is_causal", "output_attentions", "position_ids", "sliding_window", "use_cache"}
)

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def slot_mask(
    *,
    batch_size: int,
    kv_length: int,
    q_offset: torch.Tensor,
    mask_function: MaskFunction,
    dtype: torch.dtype,
    **_unused: object,
) -> torch.Tensor:
    """Evaluate the model's mask function at each row's positions.

    Args:
        batch_size: B.
        kv_length: positions that attention reads.
        q_offset: `[B, Q]` int64, the queries' positions (`SlotCache.get_query_offset`).
        dtype: of queries and keys.
        mask_function: the model's, of broadcastable index tensors (batch, head, query, key).

    Returns:
        `[B, 1, Q, kv_length]` in `dtype`, to be added to the scores: 0 where a query sees a key,
        else -inf. Not bool, because attention would convert it again in every layer.
    """
    device = q_offset.device
    batch = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, dtype=torch.long, device=device)[None, :, None, None]
    query = q_offset[:, None, :, None]
    key = torch.arange(kv_length, device=device)[None, None, None, :]
    is_seen = mask_function(batch, head, query, key).expand(batch_size, 1, -1, kv_length)
    hidden = torch.full((), float("-inf"), dtype=dtype, device=device)
    return torch.where(is_seen, hidden.new_zeros(()), hidden)


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention that never repeats keys and values.

    The query heads that share a KV head become rows of one product: `[B, H, Q, D]` is
    `[B, KV, H / KV * Q, D]`, and the mask repeats along the rows instead.

    Args:
        module: the model's attention layer, for the name in an error.
        query: `[B, num_heads, Q, head_dim]`.
        key: `[B, num_kv_heads, kv_length, head_dim]`.
        value: like `key`; its head_dim may differ.
        attention_mask: `[B, 1, Q, kv_length]`, added to the scores.
        scaling: factor on the scores; None means ``head_dim ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        s_aux: `[num_heads]`, attention sinks: one more score per head, whose value is zero.
        options: further options of the model.

    Returns:
        `[B, Q, num_heads, head_dim]`, and no attention weights.

    Raises:
        UnsupportedModelError: an option that would change the result.
    """
    if attention_mask is None:
        raise _refusal(module, "attention without a mask")
    _check_options(module, options)
    batch, num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    packed = query.reshape(batch, num_kv_heads, group * num_queries, head_dim)
    mask = attention_mask
    if num_queries > 1 and group > 1:
        mask = attention_mask.repeat(1, 1, group, 1)
    scale = head_dim**-0.5 if scaling is None else scaling
    sinks = None if s_aux is None else _packed_sinks(s_aux, num_kv_heads, num_queries)
    attend = packed_attention
    if num_queries == 1 and query.device.type == "cpu":
        attend = decode_attention
    output = attend(packed, key, value, mask, scale, softcap or 0.0, sinks)
    output = output.reshape(batch, num_heads, num_queries, -1)
    return output.transpose(1, 2), None


def _check_options(module: torch.nn.Module, options: Mapping[str, object]) -> None:
    if options.get("is_causal") is False:
        raise _refusal(module, "attention that is not causal")
    for name, value in options.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise _refusal(module, name)


def _refusal(module: torch.nn.Module, feature: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__} asks for {feature}, which attention over slots does not have"
    )


def _packed_sinks(sinks: torch.Tensor, num_kv_heads: int, num_queries: int) -> torch.Tensor:
    """Lay `[num_heads]` out like the rows of the packed product, `[KV, H / KV * Q, 1]`."""
    return sinks.view(num_kv_heads, -1).repeat_interleave(num_queries, dim=1)[..., None]


def use_slots(model: Any) -> None:
    """Register slot attention and name it in every config, which models read at each call.

    Not by `set_attn_implementation`, which leaves out models that write their attention themselves:
    they read the mask from the same registry, and the check of `build_runner` shows where that is
    not enough.

    Args:
        model: changed in place.
    """
    AttentionInterface.register(SLOT_ATTENTION, slot_attention)
    AttentionMaskInterface.register(SLOT_ATTENTION, slot_mask)
    for config in _configs(model):
        config._attn_implementation = SLOT_ATTENTION


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """Let the model run on another attention while the block runs.

    Args:
        model: changed in place, and back.
        name: a key of Hugging Face's registry, or "eager".
    """
    configs = list(_configs(model))
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own


def _configs(model: Any) -> Iterator[Any]:
    """Yield each config of the model's parts once."""
    seen = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and id(module.config) not in seen:
            seen.add(id(module.config))
            yield module.config
