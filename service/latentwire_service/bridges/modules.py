"""The maps of row-wise and windowed bridges, as torch modules in float32.

A module maps `[..., L, H_sender]` to `[..., L, H_receiver]`. Its attributes `is_row_wise`,
`source_width` (None: any) and `width` are what a bridge states about itself. A module's state dict
is what a directory stores: the names of parameters and buffers are part of the file format.
"""

from __future__ import annotations

import torch
from torch import nn

# A row whose values are all smaller is a row of zeros, which has no direction to keep.
_MIN_VALUE = 1e-30


class BridgeModule(nn.Module):
    """Base of the maps.

    Args:
        source_width: width of the rows; None accepts any.
        width: width of the embeddings.
        is_row_wise: whether each row is mapped by itself.
    """

    _place: torch.Tensor

    def __init__(self, source_width: int | None, width: int, *, is_row_wise: bool) -> None:
        super().__init__()
        self.source_width = source_width
        self.width = width
        self.is_row_wise = is_row_wise
        # It shows the device of a module without weights; not stored.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that the map runs on."""
        return self._place.device


class Identity(BridgeModule):
    """Rows that are input embeddings already."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, is_row_wise=True)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows unchanged."""
        return rows


class NormScaling(BridgeModule):
    """Rows, each scaled to one norm; a row of zeros stays one.

    Args:
        width: of the rows.
        norm: the norm of every embedding.
    """

    norm: torch.Tensor

    def __init__(self, width: int, norm: float) -> None:
        super().__init__(width, width, is_row_wise=True)
        self.register_buffer("norm", torch.tensor(norm, dtype=torch.float32))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scale `[..., L, width]`."""
        return scaled(rows, self.norm)


class Alignment(BridgeModule):
    """A matrix, then norm scaling.

    Args:
        matrix: `[H_sender, H_receiver]` float32.
        norm: the norm of every embedding.
    """

    matrix: torch.Tensor
    norm: torch.Tensor

    def __init__(self, matrix: torch.Tensor, norm: float) -> None:
        super().__init__(matrix.shape[0], matrix.shape[1], is_row_wise=True)
        self.register_buffer("matrix", matrix)
        self.register_buffer("norm", torch.tensor(norm, dtype=torch.float32))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., L, H_sender]`."""
        return scaled(rows @ self.matrix, self.norm)


class RandomMap(BridgeModule):
    """A random linear map of the rows with the norms of another bridge: it carries no meaning.

    Args:
        other: the bridge's module.
        seed: of the matrix.
        device: of the matrix.
    """

    matrix: torch.Tensor

    def __init__(self, other: BridgeModule, seed: int, device: torch.device) -> None:
        super().__init__(other.source_width, other.width, is_row_wise=other.is_row_wise)
        # The control of any width would need a matrix per width.
        width = other.width if other.source_width is None else other.source_width
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(width, other.width, generator=generator) / width**0.5
        self.register_buffer("matrix", matrix.to(device))
        self._other = [other]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., L, H_sender]`."""
        norms = self._other[0](rows).norm(dim=-1, keepdim=True)
        return scaled(rows @ self.matrix, norms)


class Ridge(BridgeModule):
    """A linear map from a window of neighbouring rows to one embedding, fitted in closed form.

    Row t predicts token t, and row t + 1 has read it. After the last row, the window holds the
    mean row.

    Args:
        source_width: width of the rows.
        width: width of the embeddings.
        window: rows from t on that embedding t depends on.
    """

    mean: torch.Tensor
    weight: nn.Parameter
    bias: nn.Parameter
    factor: torch.Tensor

    def __init__(self, source_width: int, width: int, window: int) -> None:
        super().__init__(source_width, width, is_row_wise=window == 1)
        self.window = window
        self.register_buffer("mean", torch.zeros(source_width))
        self.weight = nn.Parameter(torch.zeros(window * source_width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("factor", torch.ones(()))

    def windows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `[..., L, window * H_sender]`: each row less the mean, and its successors."""
        centred = rows - self.mean
        parts = [centred]
        for shift in range(1, self.window):
            later = torch.zeros_like(centred)
            if shift < centred.shape[-2]:
                later[..., :-shift, :] = centred[..., shift:, :]
            parts.append(later)
        return torch.cat(parts, dim=-1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., L, H_sender]`."""
        return self.linear(self.windows(rows))

    def linear(self, windows: torch.Tensor) -> torch.Tensor:
        """Map windows `[..., L, window * H_sender]`."""
        result: torch.Tensor = (windows @ self.weight + self.bias) * self.factor
        return result


class Mlp(Ridge):
    """A ridge bridge plus a residual LayerNorm-MLP, which starts as zero.

    Args:
        source_width: width of the rows.
        width: width of the embeddings.
        window: rows from t on that embedding t depends on.
        intermediate_size: width of the hidden layer.
    """

    def __init__(self, source_width: int, width: int, window: int, intermediate_size: int) -> None:
        super().__init__(source_width, width, window)
        self.norm = nn.LayerNorm(window * source_width)
        self.up = nn.Linear(window * source_width, intermediate_size)
        self.down = nn.Linear(intermediate_size, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map `[..., L, H_sender]`."""
        windows = self.windows(rows)
        residual = self.down(nn.functional.gelu(self.up(self.norm(windows))))
        result: torch.Tensor = self.linear(windows) + residual
        return result


def scaled(rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Scale each row to a norm; a row of zeros stays one.

    Args:
        rows: `[..., width]` float32.
        norms: broadcast against `[..., 1]`.
    """
    # Relative to the largest value, so that squares of large values do not overflow. The norm is
    # then at least 1, unless the row is zero.
    relative = rows / rows.abs().amax(dim=-1, keepdim=True).clamp_min(_MIN_VALUE)
    result: torch.Tensor = relative * (norms / relative.norm(dim=-1, keepdim=True).clamp_min(1.0))
    return result
