"""The adapter that Interlat publishes: attention over the whole latent, then a scaled residual MLP.

The names of the parameters are those of the published state, so that its files can be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.engine.seams.bridge import BridgeError

STATE_NAME = "hidden_mha_state.pt"
_CONFIG_NAME = "prepended_config.json"
_PROJECTOR = "input_projector"
_PARTS = ("hidden_mha", "pre_ln", "post_ln", "adaptive_proj")
_EPS = 1e-6
DEFAULT_NUM_HEADS = 8


class _AdaptiveProjection(nn.Module):
    """A scaled residual and a GELU MLP with a LayerNorm inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.2))
        self.output_scale = nn.Parameter(torch.tensor(0.1))
        first, last = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(first.weight, std=0.02)
        nn.init.zeros_(first.bias)
        nn.init.xavier_uniform_(last.weight, gain=1e-2)
        nn.init.zeros_(last.bias)
        self.proj = nn.Sequential(first, nn.GELU(), nn.LayerNorm(width), last)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        residual = rows * self.scale
        result: torch.Tensor = (residual + self.proj(residual)) * self.output_scale
        return result


class InterlatAdapter(BridgeModule):
    """Interlat's adapter.

    Args:
        source_width: width of the rows; a projector is part of it if it differs from `width`.
        width: width of the embeddings.
        num_heads: of the attention; divides `width`.
    """

    def __init__(self, source_width: int, width: int, num_heads: int = DEFAULT_NUM_HEADS) -> None:
        super().__init__(source_width, width, is_row_wise=False)
        self.input_projector: nn.Module = nn.Identity()
        if source_width != width:
            self.input_projector = nn.Linear(source_width, width)
        self.pre_ln = nn.LayerNorm(width, eps=_EPS)
        self.hidden_mha = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.post_ln = nn.LayerNorm(width, eps=_EPS)
        self.adaptive_proj = _AdaptiveProjection(width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[L, H_sender]` or `[B, L, H_sender]`; rows of one latent see each other."""
        normed = self.pre_ln(self.input_projector(rows))
        attended, _ = self.hidden_mha(normed, normed, normed, need_weights=False)
        result: torch.Tensor = self.adaptive_proj(self.post_ln(normed + attended))
        return result


def read_published_state(directory: Path) -> dict[str, torch.Tensor]:
    """Read `hidden_mha_state.pt` as tensors alone: its pickle cannot run code.

    Returns:
        Tensors on the CPU by the names of `InterlatAdapter`, in float32.

    Raises:
        BridgeError: the file cannot be read, holds more than tensors, or a part is missing.
    """
    try:
        state = torch.load(directory / STATE_NAME, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged files make torch raise anything. Its own message may quote the file.
        raise BridgeError(f"{STATE_NAME} is damaged, or holds more than tensors") from error
    missing = [part for part in _PARTS if not isinstance(_part(state, part), Mapping)]
    if missing:
        raise BridgeError(f"{STATE_NAME} has no {', '.join(missing)}")
    tensors = {}
    for part in (*_PARTS, _PROJECTOR):
        for name, value in (_part(state, part) or {}).items():
            if not isinstance(value, torch.Tensor):
                raise BridgeError(f"{STATE_NAME}: {part}.{name} is not a tensor")
            tensors[f"{part}.{name}"] = value.float()
    return tensors


def published_sizes(directory: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
    """Return source width, width and number of heads of a published state.

    Raises:
        BridgeError: a tensor that states a size is missing.
    """
    norm, projector = tensors.get("pre_ln.weight"), tensors.get(f"{_PROJECTOR}.weight")
    if norm is None or norm.ndim != 1 or (projector is not None and projector.ndim != 2):
        raise BridgeError(f"{STATE_NAME} has no pre_ln.weight that states the width")
    width = norm.shape[0]
    source_width = width if projector is None else projector.shape[1]
    return source_width, width, _num_heads(directory)


def _part(state: object, name: str) -> Mapping[str, object] | None:
    part = state.get(name) if isinstance(state, Mapping) else None
    return part if isinstance(part, Mapping) else None


def _num_heads(directory: Path) -> int:
    try:
        value = json.loads((directory / _CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return DEFAULT_NUM_HEADS
    heads = value.get("mha_num_heads") if isinstance(value, dict) else None
    return heads if isinstance(heads, int) and 1 <= heads <= 1024 else DEFAULT_NUM_HEADS
