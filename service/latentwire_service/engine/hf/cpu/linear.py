"""Faster products for the same weights: siblings fused, and packed for the CPU.

Nothing here knows a model by name. Linear layers of one module are fused when a watched forward
pass gives them the very same tensor (query, key and value; gate and up). Fusion changes the speed,
never the result: see `SiblingLinear`.

Measured for SmolLM2-135M on two AVX-512 cores: packing takes 20-50 % off a product, fusing another
5-10 %.
"""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

# Rows of the product that oneDNN lays the weights out for. One layout serves prefill and decode:
# measured with 1 to 512 rows, no other hint was faster by more than the noise.
_PACKING_ROWS = 64


class Product(nn.Module):
    """``x @ weight.T + bias`` for one or more sibling linear layers.

    On the CPU the weights are kept in oneDNN's blocked layout, when this build of torch has it.

    Args:
        layers: siblings with one input; their weights are joined and may be freed afterwards.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.out_features = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else None
        weight = layers[0].weight.detach() if weight is None else weight
        self.is_packed = can_pack(weight)
        if self.is_packed:
            # A plain attribute: a blocked layout has no strides, which buffers must have.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKING_ROWS)
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.bias: torch.Tensor | None
        self.register_buffer("bias", _joined_bias(layers), persistent=False)
        self.handle = next(_handles)
        _products[self.handle] = self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[..., sum(out_features)]`."""
        if not self.is_packed:
            return linear(x, self.weight, self.bias)
        if torch.compiler.is_compiling():
            traced: torch.Tensor = packed_product(x, self.handle, sum(self.out_features))
            return traced
        return self.multiply(x)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[..., sum(out_features)]`, by packed weights."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return product


# A compiler can trace no tensor in a blocked layout: its graph has the number of the product.
_handles = itertools.count()
_products: weakref.WeakValueDictionary[int, Product] = weakref.WeakValueDictionary()


@torch.library.custom_op("latentwire::packed_product", mutates_args=(), device_types="cpu")
def packed_product(x: torch.Tensor, handle: int, _out_features: int) -> torch.Tensor:
    """`Product.multiply` as an operator of a traced graph."""
    return _products[handle].multiply(x)


@packed_product.register_fake
def _shape_of(x: torch.Tensor, _handle: int, out_features: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class SiblingLinear(nn.Module):
    """Replaces one linear layer; the first of its siblings computes for all of them.

    Invariant: a part is given out only for the tensor object that the product was computed from.
    A sibling that is called with another tensor computes the product of that one, so the order of
    the calls decides the speed alone. A model that overwrites its input between two siblings would
    break the invariant; the check of `build_runner` compares every model with its own pass.
    """

    def __init__(self, shared: _Shared, index: int) -> None:
        super().__init__()
        self.shared = shared
        self.index = index
        self.out_features = shared.product.out_features[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[..., out_features]`."""
        return self.shared.take(self.index, x)


@dataclass(slots=True)
class _Shared:
    """A product and, between the first sibling's call and the last one's, its parts."""

    product: Product
    _input: torch.Tensor | None = field(default=None, init=False)
    _parts: Sequence[torch.Tensor] = field(default=(), init=False)

    def take(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if self._input is not x:
            self._input = x
            self._parts = self.product(x).split(self.product.out_features, dim=-1)
        part = self._parts[index]
        if index == len(self._parts) - 1:
            self._input, self._parts = None, ()
        return part


@dataclass(frozen=True, slots=True)
class LinearCall:
    """One call of a linear layer: the path of its parent, its name there, and its input."""

    parent: str
    name: str
    input: torch.Tensor


@contextmanager
def watch_linears(model: nn.Module) -> Iterator[list[LinearCall]]:
    """Note, while the block runs, which linear layer was called with which tensor."""
    calls: list[LinearCall] = []
    hooks = []
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")

            def note(_module: nn.Module, args: Any, parent: str = parent, name: str = name) -> None:
                calls.append(LinearCall(parent, name, args[0]))

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def optimise_linears(model: nn.Module, calls: Sequence[LinearCall]) -> None:
    """Replace the model's linear layers by fused and packed ones, in place.

    Args:
        model: in eval mode, on its device, in its dtype.
        calls: of one forward pass, from `watch_linears`.
    """
    for parent_path, names in _siblings(calls):
        parent = model.get_submodule(parent_path)
        layers: list[nn.Linear] = [getattr(parent, name) for name in names]
        product = Product(layers)
        if len(layers) == 1:
            if product.is_packed:
                setattr(parent, names[0], product)
            continue
        shared = _Shared(product)
        for index, name in enumerate(names):
            setattr(parent, name, SiblingLinear(shared, index))


def bytes_kept_twice(model: nn.Module, calls: Sequence[LinearCall]) -> int:
    """Return the bytes of packed copies whose originals stay: an LM head tied to the embeddings.

    Args:
        model: before `optimise_linears`.
        calls: as there.
    """
    others = {
        id(parameter)
        for module in model.modules()
        if type(module) is not nn.Linear
        for parameter in module.parameters(recurse=False)
    }
    num_bytes = 0
    for parent, names in _siblings(calls):
        for name in names:
            weight = model.get_submodule(parent).get_parameter(f"{name}.weight")
            num_bytes += weight.nbytes if can_pack(weight) and id(weight) in others else 0
    return num_bytes


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN takes this weight in its own layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


def _siblings(calls: Sequence[LinearCall]) -> Iterator[tuple[str, list[str]]]:
    """Group the layers that were called exactly once, by parent and input tensor, in call order."""
    num_calls: dict[tuple[str, str], int] = defaultdict(int)
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for call in calls:
        num_calls[call.parent, call.name] += 1
        groups[call.parent, id(call.input)].append(call.name)
    for (parent, _), names in groups.items():
        if all(num_calls[parent, name] == 1 for name in names):
            yield parent, names


def _joined_bias(layers: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
            for layer in layers
        ]
    ).detach()
