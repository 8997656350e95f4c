"""Fused and packed linear layers give what the single ones gave."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from latentwire_service.engine.hf.cpu.linear import (
    Product,
    bytes_kept_twice,
    can_pack,
    optimise_linears,
    packed_product,
    watch_linears,
)
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, build_model, llama_config


class Projections(torch.nn.Module):
    """Linear layers in the ways that models use them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 6)
        self.second = torch.nn.Linear(8, 4, bias=False)
        self.third = torch.nn.Linear(8, 4)
        self.twice = torch.nn.Linear(8, 8)
        self.unused = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The view is what models do with heads; the third layer is called with another tensor.
        heads = self.first(x).view(*x.shape[:-1], 3, 2).transpose(1, 2)
        return torch.cat(
            [heads.flatten(1), self.second(x).flatten(1), self.third(y).flatten(1)]
            + [self.twice(self.twice(x)).flatten(1)],
            dim=1,
        )


@torch.inference_mode()
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("is_same", [True, False])
def test_fused_layers_give_what_single_ones_gave(
    pack: bool, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pack:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = Projections().eval().requires_grad_(False)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected = model(x, y), model(x, x), linear(x, model.unused.weight, model.unused.bias)
    with watch_linears(model) as calls:
        model(x, x if is_same else y)
    optimise_linears(model, calls)
    for actual, own in zip((model(x, y), model(x, x), model.unused(x)), expected, strict=True):
        torch.testing.assert_close(actual, own)


@torch.inference_mode()
@pytest.mark.parametrize("is_tied", [True, False])
def test_copies_of_weights_that_stay_are_counted(is_tied: bool) -> None:
    model = build_model(llama_config(tie_word_embeddings=is_tied))
    with watch_linears(model) as calls:
        model(input_ids=torch.tensor([[3, 4, 5]]))
    counted = bytes_kept_twice(model, calls)
    tied: torch.nn.Parameter = model.model.embed_tokens.weight
    optimise_linears(model, calls)
    # After packing, only an embedding is there as well as its copy.
    is_copied = is_tied and can_pack(tied)
    assert counted == (VOCAB_SIZE * HIDDEN_SIZE * 4 if is_copied else 0)
    assert (model.lm_head.weight is tied) == (is_tied and not is_copied)


def test_packed_products_keep_torchs_rules() -> None:
    product = Product([torch.nn.Linear(8, 6), torch.nn.Linear(8, 4)])
    assert product.is_packed == can_pack(torch.zeros(1, 1))
    if product.is_packed:
        x = torch.randn(2, 5, 8)
        with torch.inference_mode():
            torch.library.opcheck(packed_product, (x, product.handle, 10))
