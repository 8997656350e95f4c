"""Attention over slots equals torch's attention, and refuses options that it does not support."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.attention import slot_attention
from support.engine.device import DEVICE


def attention_inputs(
    num_queries: int, num_kv_heads: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query = torch.randn(2, 6, num_queries, 8)
    key, value = torch.randn(2, num_kv_heads, 12, 8), torch.randn(2, num_kv_heads, 12, 5)
    is_seen = torch.rand(2, 1, num_queries, 12) < 0.7
    is_seen[..., 0] = True
    mask = torch.zeros(is_seen.shape).masked_fill(~is_seen, float("-inf"))
    return query.to(DEVICE), key.to(DEVICE), value.to(DEVICE), mask.to(DEVICE)


@pytest.mark.parametrize("num_queries", [1, 4])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_grouped_attention_equals_repeated_keys_and_values(
    num_queries: int, num_kv_heads: int
) -> None:
    query, key, value, mask = attention_inputs(num_queries, num_kv_heads)
    keys, values = (t.repeat_interleave(6 // num_kv_heads, dim=1) for t in (key, value))
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3)
    without_effect: list[dict[str, Any]] = [
        {},
        {"softcap": 1e6},
        {"s_aux": torch.full((6,), -1e6, device=DEVICE)},
    ]
    for options in without_effect:
        actual, _ = slot_attention(
            torch.nn.Module(), query, key, value, mask, scaling=0.3, **options
        )
        torch.testing.assert_close(actual, expected.transpose(1, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_queries", [1, 4])
def test_a_sink_takes_its_share_of_each_head(num_queries: int) -> None:
    query, key, value, mask = attention_inputs(num_queries)
    sinks = torch.linspace(-2, 3, 6, device=DEVICE)
    # A sink equals one more position that every query sees, with that score and a value of zero.
    scores = query @ key.repeat_interleave(3, dim=1).transpose(-1, -2) * 8**-0.5 + mask
    scores = torch.cat([scores, sinks.view(1, 6, 1, 1).expand(2, 6, num_queries, 1)], dim=-1)
    values = value.repeat_interleave(3, dim=1)
    values = torch.cat([values, torch.zeros(2, 6, 1, 5, device=DEVICE)], dim=2)
    expected = torch.softmax(scores, dim=-1) @ values
    actual, _ = slot_attention(torch.nn.Module(), query, key, value, mask, s_aux=sinks)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"position_bias": torch.zeros(1, 6, 1, 12)}, "Module needs position_bias"),
        ({"is_causal": False}, "Module needs attention that is not causal"),
        ({"of_the_future": 1.0}, "Module needs of_the_future"),
    ],
)
def test_an_option_that_changes_the_result_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        slot_attention(torch.nn.Module(), *attention_inputs(1), **options)


def test_attention_without_a_mask_is_refused() -> None:
    query, key, value, _ = attention_inputs(1)
    with pytest.raises(UnsupportedModelError, match="needs attention without a mask"):
        slot_attention(torch.nn.Module(), query, key, value, None)


def test_options_without_effect_are_ignored() -> None:
    inputs = attention_inputs(1)
    expected, _ = slot_attention(torch.nn.Module(), *inputs)
    actual, _ = slot_attention(
        torch.nn.Module(),
        *inputs,
        dropout=0.0,
        is_causal=True,
        position_ids=torch.zeros(2, 1),
        sliding_window=4,
        position_bias=None,
        output_attentions=False,
    )
    assert torch.equal(actual, expected)
