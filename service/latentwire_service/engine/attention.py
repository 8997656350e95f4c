"""Attention and mask over slots, registered with Hugging Face under one name.

Models look both up by the name in their config, so any model that uses the attention interface
runs on slots without a change: its own mask factory (causal, sliding window, chunked) is evaluated
at each row's own positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

SLOT_ATTENTION = "latentwire_slots"

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
        else -inf. (From a bool, attention would make the same tensor again in every layer.)
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
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention that never repeats keys and values.

    The query heads that share a KV head become rows of one product: `[B, H, Q, D]` is
    `[B, KV, H / KV * Q, D]`, and the mask repeats along the rows instead.

    Args:
        query: `[B, num_heads, Q, head_dim]`.
        key: `[B, num_kv_heads, kv_length, head_dim]`.
        value: like `key`; its head_dim may differ.
        attention_mask: `[B, 1, Q, kv_length]`, added to the scores.
        scaling: factor on the scores; None means ``head_dim ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).

    Returns:
        `[B, Q, num_heads, head_dim]`, and no attention weights.
    """
    batch, num_heads, num_queries, _ = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    packed = query.reshape(batch, num_kv_heads, group * num_queries, -1)
    mask = attention_mask
    if num_queries > 1 and group > 1:
        mask = attention_mask.repeat(1, 1, group, 1)
    if softcap is None:
        output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    else:
        output = _softcapped(packed, key, value, mask, scaling, softcap)
    output = output.reshape(batch, num_heads, num_queries, -1)
    return output.transpose(1, 2), None


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def register() -> None:
    """Make the name known to Hugging Face's registries; calling it again changes nothing."""
    AttentionInterface.register(SLOT_ATTENTION, slot_attention)
    AttentionMaskInterface.register(SLOT_ATTENTION, slot_mask)
