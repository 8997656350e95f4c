"""The trained parts of compressors, as torch modules in float32.

A module's state dict is what a directory stores, and the client package computes the same in numpy:
the names of parameters and buffers are part of the file format.
"""

from __future__ import annotations

import torch
from torch import nn

from latentwire.compressors.layers import sinusoids
from latentwire_service.bridges.modules import BridgeModule


class GainScorer(nn.Module):
    """Predicts what each row of a latent gains at the receiver.

    Args:
        source_width: H.
        size: of the hidden layer.
    """

    def __init__(self, source_width: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * source_width)
        self.up = nn.Linear(2 * source_width + 2, size)
        self.out = nn.Linear(size, 1)

    def forward(self, known: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Score rows.

        Args:
            known: `[n, 2 H]`: each row and its successor.
            steps: `[n, 2]`: the number of the row.

        Returns:
            `[n]`.
        """
        hidden = nn.functional.gelu(self.up(torch.cat([self.norm(known), steps], dim=1)))
        result: torch.Tensor = self.out(hidden)[:, 0]
        return result


class MessageMixer(nn.Module):
    """Embeddings of chosen rows, to each of which is added what it reads in all others.

    What is added starts as zero.

    Args:
        bridge: makes the embeddings; it is trained, too.
        num_slots: most rows of a message.
        num_heads: of the attention; divides the width of the embeddings.
        intermediate_size: width of the hidden layer.
    """

    def __init__(
        self, bridge: BridgeModule, num_slots: int, num_heads: int, intermediate_size: int
    ) -> None:
        super().__init__()
        width = bridge.width
        self.bridge = bridge
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(num_slots, width) * 0.02)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, intermediate_size)
        self.down = nn.Linear(intermediate_size, width)
        for layer in (self.o, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Make a message.

        Args:
            rows: `[L, H]` float32, L at least 1.
            places: `[K]` of the chosen rows, ascending.

        Returns:
            `[K, W]`.
        """
        embeddings = self.bridge(rows)
        waves = torch.from_numpy(sinusoids(*embeddings.shape)).to(embeddings.device)
        read = self.norm(embeddings) + waves
        message = embeddings[places]
        queries = self.q(read[places] + self.query[: len(places)])
        message = message + self.o(self._attention(queries, self.k(read), self.v(read)))
        hidden = nn.functional.gelu(self.up(self.norm2(message)))
        result: torch.Tensor = message + self.down(hidden)
        return result

    def _attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        heads = [
            each.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
            for each in (queries, keys, values)
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return attended.transpose(0, 1).flatten(1)
