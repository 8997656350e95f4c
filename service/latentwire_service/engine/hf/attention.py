"""Attention and mask over slots, registered with Hugging Face under one name.

A model looks both up by the name in its config. So every model that uses the attention interface
runs on slots without a change: its own mask function (causal, sliding window, chunked) is evaluated
at the positions of each row.
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

# Options that models pass to every attention and that do not change slot attention: dropout is zero
# in eval mode, the window is in the mask, and the others are for kernels that build their own mask
# or return attention weights.
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
    """Evaluate the model's mask function at the positions of each row.

    Args:
        batch_size: B.
        kv_length: positions that attention reads.
        q_offset: `[B, Q]` int64, the queries' positions (`SlotCache.get_query_offset`).
        mask_function: the model's function of broadcastable index tensors (batch, head, query,
            key).
        dtype: the dtype of queries and keys.

    Returns:
        `[B, 1, Q, kv_length]` in `dtype`, added to the scores: 0 where a query sees a key, and -inf
        elsewhere. A bool mask would be converted in every layer.
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
    """Compute grouped-query attention without repeating keys and values.

    The query heads that share a KV head become rows of one product: `[B, H, Q, D]` becomes
    `[B, KV, H / KV * Q, D]`, and only the mask repeats.

    Args:
        module: the model's attention layer, for its name in an error.
        query: `[B, num_heads, Q, head_dim]`.
        key: `[B, num_kv_heads, kv_length, head_dim]`.
        value: `[B, num_kv_heads, kv_length, value_dim]`.
        attention_mask: `[B, 1, Q, kv_length]`, added to the scores.
        scaling: factor on the scores; None means ``head_dim ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        s_aux: `[num_heads]`, attention sinks: one more score per head, with a value of zero.
        options: further options of the model.

    Returns:
        `[B, Q, num_heads, value_dim]`, and no attention weights.

    Raises:
        UnsupportedModelError: an option would change the result.
    """
    if attention_mask is None:
        raise _refusal(module, "attention without a mask")
    _check_options(module, options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _attend_packed(query, key, value, attention_mask, scale, softcap or 0.0, s_aux)
    return output.transpose(1, 2), None


def _attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float,
    s_aux: torch.Tensor | None,
) -> torch.Tensor:
    """Return `[B, num_heads, Q, value_dim]`; the arguments are those of `slot_attention`."""
    batch, num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    packed = query.reshape(batch, num_kv_heads, group * num_queries, head_dim)
    if num_queries > 1 and group > 1:
        mask = mask.repeat(1, 1, group, 1)
    sinks = None if s_aux is None else _packed_sinks(s_aux, num_kv_heads, num_queries)
    attend = packed_attention
    if num_queries == 1 and query.device.type == "cpu":
        attend = decode_attention
    output = attend(packed, key, value, mask, scale, softcap, sinks)
    return output.reshape(batch, num_heads, num_queries, -1)


def _check_options(module: torch.nn.Module, options: Mapping[str, object]) -> None:
    if options.get("is_causal") is False:
        raise _refusal(module, "attention that is not causal")
    for name, value in options.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise _refusal(module, name)


def _refusal(module: torch.nn.Module, feature: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__} needs {feature}, which attention over slots does not support"
    )


def _packed_sinks(sinks: torch.Tensor, num_kv_heads: int, num_queries: int) -> torch.Tensor:
    """Arrange `[num_heads]` as the rows of the packed product, `[KV, H / KV * Q, 1]`."""
    return sinks.view(num_kv_heads, -1).repeat_interleave(num_queries, dim=1)[..., None]


def use_slots(model: Any) -> None:
    """Register slot attention, and name it in every config, which models read at each call.

    `set_attn_implementation` would leave out models with attention code of their own. They read the
    mask from the same registry, and the check of `build_runner` refuses those that need more.

    Args:
        model: changed in place.
    """
    AttentionInterface.register(SLOT_ATTENTION, slot_attention)
    AttentionMaskInterface.register(SLOT_ATTENTION, slot_mask)
    for config in _configs(model):
        config._attn_implementation = SLOT_ATTENTION


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """Make the model use another attention while the block runs.

    Args:
        model: changed in place, and restored at the end.
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
