"""Fused and packed linear layers compute the same as the layers that they replace."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn.functional import linear

from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.cpu import linear as linear_module
from latentwire_service.engine.hf.cpu.linear import (
    Product,
    SharedProduct,
    SiblingLinear,
    bytes_kept_twice,
    can_pack,
    optimise_linears,
    packed_product,
    watch_linears,
)
from latentwire_service.engine.hf.probe import probe
from support.tiny_models import HIDDEN_SIZE, VOCAB_SIZE, build_model, llama_config


class Projections(torch.nn.Module):
    """Linear layers, used as models use them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 6)
        self.second = torch.nn.Linear(8, 4, bias=False)
        self.third = torch.nn.Linear(8, 4)
        self.twice = torch.nn.Linear(8, 8)
        self.unused = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Models view a projection as heads. The third layer may have another input.
        heads = self.first(x).view(*x.shape[:-1], 3, 2).transpose(1, 2)
        return torch.cat(
            [heads.flatten(1), self.second(x).flatten(1), self.third(y).flatten(1)]
            + [self.twice(self.twice(x)).flatten(1)],
            dim=1,
        )


def names_of_fused(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is SiblingLinear]


@torch.no_grad()
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("is_same", [True, False])
def test_fused_layers_compute_the_same_as_single_ones(
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
    assert names_of_fused(model) == (
        ["first", "second", "third"] if is_same else ["first", "second"]
    )
    for actual, own in zip((model(x, y), model(x, x), model.unused(x)), expected, strict=True):
        torch.testing.assert_close(actual, own)


class OverwritesItsInput(torch.nn.Module):
    """A layer's input is overwritten in place before its sibling reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 6)
        self.second = torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        x.view(-1).mul_(2)
        return torch.cat([first, self.second(x)], dim=-1)


@torch.no_grad()
def test_layers_whose_input_is_overwritten_between_them_are_not_fused() -> None:
    model = OverwritesItsInput().requires_grad_(False)
    x = torch.randn(2, 8)
    expected = model(x.clone())
    with watch_linears(model) as calls:
        model(x.clone())
    optimise_linears(model, calls)
    assert names_of_fused(model) == []
    torch.testing.assert_close(model(x.clone()), expected)


@torch.inference_mode()
def test_layers_watched_in_inference_mode_are_not_fused() -> None:
    model = Projections()
    x = torch.randn(2, 5, 8)
    with watch_linears(model) as calls:
        model(x, x)
    optimise_linears(model, calls)
    assert names_of_fused(model) == []


class Siblings:
    """Three fused layers, next to what each computes alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layers = [torch.nn.Linear(8, width) for width in (6, 4, 5)]
        self.shared = SharedProduct(Product(self.layers))
        self.num_products = 0
        self.shared.product.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.num_products += 1

    def check(self, index: int, x: torch.Tensor) -> None:
        torch.testing.assert_close(self.shared.take(index, x), self.layers[index](x))


MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


@MODES
@pytest.mark.parametrize(
    ("order", "num_products"),
    [
        ([0, 1, 2], 1),
        ([0, 1, 2, 0, 1, 2], 2),
        ([0, 0, 1, 2], 2),
        ([0, 2, 1], 3),
        ([2, 1, 0], 3),
        ([1, 2], 1),
        ([0, 1, 0, 1, 2], 2),
    ],
)
def test_siblings_may_be_called_in_any_order(
    order: list[int], num_products: int, mode: type[torch.no_grad]
) -> None:
    with mode():
        siblings, x = Siblings(), torch.randn(3, 8)
        for index in order:
            siblings.check(index, x)
    assert siblings.num_products == num_products


@MODES
def test_a_sibling_with_another_tensor_computes_its_own_part(mode: type[torch.no_grad]) -> None:
    with mode():
        siblings, x = Siblings(), torch.randn(3, 8)
        siblings.check(0, x)
        siblings.check(1, x + 1)
        siblings.check(2, x.clone())
        siblings.check(0, x)
        # Equal memory is not enough: the view is another tensor.
        siblings.check(1, x.view(3, 8))


@torch.no_grad()
def test_a_sibling_whose_input_was_overwritten_computes_its_own_part() -> None:
    siblings, x = Siblings(), torch.randn(3, 8)
    siblings.check(0, x)
    x.add_(1)
    siblings.check(1, x)
    x[0].mul_(3)
    siblings.check(2, x)


@MODES
def test_a_pass_that_ends_early_leaves_no_part_for_the_next(mode: type[torch.no_grad]) -> None:
    with mode():
        siblings, x = Siblings(), torch.randn(3, 8)
        for _ in range(3):
            siblings.check(0, x)
            x.add_(1)


@MODES
def test_the_identity_of_a_freed_input_is_not_reused(mode: type[torch.no_grad]) -> None:
    with mode():
        siblings = Siblings()
        for _ in range(50):
            siblings.check(0, torch.randn(3, 8))
            siblings.check(1, torch.randn(3, 8))


def test_a_decoder_fuses_query_key_value_and_gate_up() -> None:
    model = build_model(llama_config(num_hidden_layers=1))
    build_runner(model, probe(model), max_slots=2, max_model_len=64)
    assert [name.rpartition(".")[2] for name in names_of_fused(model)] == [
        *("q_proj", "k_proj", "v_proj"),
        *("gate_proj", "up_proj"),
    ]


@torch.no_grad()
@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_kept_next_to_their_packed_copy_are_counted(is_tied: bool) -> None:
    model = build_model(llama_config(tie_word_embeddings=is_tied))
    with watch_linears(model) as calls:
        model(input_ids=torch.tensor([[3, 4, 5]]))
    counted = bytes_kept_twice(model, calls)
    tied: torch.nn.Parameter = model.model.embed_tokens.weight
    optimise_linears(model, calls)
    # After packing, only the embedding exists twice.
    is_copied = is_tied and can_pack(tied)
    assert counted == (VOCAB_SIZE * HIDDEN_SIZE * 4 if is_copied else 0)
    assert (model.lm_head.weight is tied) == (is_tied and not is_copied)


def test_the_registry_does_not_keep_a_product() -> None:
    product = Product([torch.nn.Linear(8, 6)])
    handle = product.handle
    assert handle in linear_module._products
    del product
    gc.collect()
    assert handle not in linear_module._products


def test_packed_product_is_a_valid_torch_operator() -> None:
    product = Product([torch.nn.Linear(8, 6), torch.nn.Linear(8, 4)])
    assert product.is_packed == can_pack(torch.zeros(1, 1))
    if product.is_packed:
        x = torch.randn(2, 5, 8)
        with torch.inference_mode():
            torch.library.opcheck(packed_product, (x, product.handle, 10))
