"""The slot-indexed KV cache, as a Hugging Face cache that models write to.

Each layer preallocates keys and values of ``[num_slots, num_kv_heads, max_model_len + 1,
head_dim]``. The last position is scratch: padding writes there, and attention never reads it. A
forward pass first sets the slots and positions of its tokens (`CacheView`). The layers then write
in place and return the keys and values that attention reads: the slots of the pass, up to the
length that covers them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Size of one layer's keys and values per position."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_values(self) -> int:
        """Numbers stored per position."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class CacheView:
    """The part of the cache that one forward pass writes and reads.

    Attributes:
        slots: `[B]` int64.
        is_dense: the slots are ``0..B-1``, so attention reads them without a copy.
        write_positions: `[B, Q]` int64, the position to which each token's keys and values go.
        query_positions: `[B, Q]` int64, each token's position in its sequence, for the mask.
        kv_length: positions that attention reads.
    """

    slots: torch.Tensor
    is_dense: bool
    write_positions: torch.Tensor
    query_positions: torch.Tensor
    kv_length: int


@dataclass(slots=True)
class CurrentView:
    """The view of the current forward pass, shared by all layers."""

    view: CacheView | None = None

    def get(self) -> CacheView:
        """Return the view."""
        assert self.view is not None
        return self.view


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer for all slots."""

    is_compileable = True
    is_sliding = False

    def __init__(self, num_slots: int, num_positions: int, current: CurrentView) -> None:
        CacheLayerMixin.__init__(self)
        self.num_slots = num_slots
        self.num_positions = num_positions
        self.current = current

    def allocate(self, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate zeroed memory, because masked-out positions must be finite, too."""
        sizes = (self.num_slots, shape.num_kv_heads, self.num_positions)
        self.keys = _zeros((*sizes, shape.key_dim), dtype, device)
        self.values = _zeros((*sizes, shape.value_dim), dtype, device)
        for cache in (self.keys, self.values):
            # CUDA graphs require that the tensors they change keep their address.
            torch._dynamo.mark_static_address(cache)
        self.is_initialized = True

    def lazy_initialization(self, _key_states: torch.Tensor, _value_states: torch.Tensor) -> None:
        """Refuse to allocate on first use, as Hugging Face offers: slots are allocated at start."""
        raise AssertionError("SlotLayer is allocated before its first update")

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[B, num_kv_heads, Q, head_dim]` in place.

        Returns:
            the keys and values that attention reads, `[B, num_kv_heads, kv_length, head_dim]`.
        """
        view = self.current.get()
        assert self.keys is not None
        assert self.values is not None
        return (
            _write_and_read(self.keys, key_states, view),
            _write_and_read(self.values, value_states, view),
        )

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """Return the KV length and offset that the mask covers."""
        return self.current.get().kv_length, 0

    def get_seq_length(self) -> int:
        """Return the positions before the queries, as one number for all rows."""
        view = self.current.get()
        return view.kv_length - view.write_positions.shape[1]

    def get_max_length(self) -> int:
        """Return the number of positions of a slot."""
        return self.num_positions - 1


def _write_and_read(cache: torch.Tensor, states: torch.Tensor, view: CacheView) -> torch.Tensor:
    # Two index tensors around a slice put the indexed dimensions first: [B, Q, heads, head_dim].
    cache[view.slots[:, None], :, view.write_positions] = states.transpose(1, 2)
    if view.is_dense:
        return cache[: states.shape[0], :, : view.kv_length]
    return cache[:, :, : view.kv_length].index_select(0, view.slots)


def _zeros(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros. On the CPU, a page takes memory only after the first write to it.

    torch would write all pages at once, but a cache of many long slots is rarely full. Huge pages
    are declined, because a short sequence would take as many of them as a long one.
    """
    if device.type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(sizes) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(sizes)


class SlotCache(Cache):
    """All layers' slots."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.scratch_position = max_model_len
        self._current = CurrentView()
        slot_layers = [SlotLayer(num_slots, max_model_len + 1, self._current) for _ in shapes]
        for layer, shape in zip(slot_layers, shapes, strict=True):
            layer.allocate(shape, dtype, device)
        self.slot_layers = slot_layers
        super().__init__(layers=list(slot_layers))

    def use(self, view: CacheView) -> None:
        """Set the slots and positions of the next forward pass."""
        self._current.view = view

    def get_query_offset(self, _layer_idx: int = 0) -> Any:
        """Return the positions of the queries, `[B, Q]` int64, the `q_offset` of `slot_mask`.

        The type is Any because Hugging Face declares int. It passes the value on without reading
        it, and one number cannot represent rows of different lengths.
        """
        return self._current.get().query_positions

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of one slot to another."""
        for cache in self._tensors():
            cache[target, :, :num_tokens] = cache[source, :, :num_tokens]

    def read(self, slot: int, num_tokens: int) -> list[torch.Tensor]:
        """Copy the first `num_tokens` positions of a slot.

        Returns:
            keys and values of each layer in turn, `[num_kv_heads, num_tokens, head_dim]` each.
        """
        return [cache[slot, :, :num_tokens].clone() for cache in self._tensors()]

    def write(self, slot: int, num_tokens: int, states: Sequence[torch.Tensor]) -> None:
        """Write the first `num_tokens` positions of states that `read` returned to a slot."""
        for cache, state in zip(self._tensors(), states, strict=True):
            cache[slot, :, :num_tokens] = state[:, :num_tokens]

    def clear(self, slot: int) -> None:
        """Zero a slot, because a NaN in it would reach the next request at masked-out positions."""
        for cache in self._tensors():
            cache[slot] = 0

    def _tensors(self) -> Iterator[torch.Tensor]:
        for layer in self.slot_layers:
            assert layer.keys is not None
            assert layer.values is not None
            yield layer.keys
            yield layer.values
