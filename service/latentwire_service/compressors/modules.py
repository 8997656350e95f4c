"""The trained parts of compressors, as torch modules in float32.

A module's state dict is what a directory stores, and the client package computes the same in numpy:
the names of parameters and buffers are part of the file format.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from latentwire.compressors.layers import POSITION_WIDTH, positions, sinusoids
from latentwire_service.bridges.modules import BridgeModule


class Autoencoder(nn.Module):
    """Codes rows one by one: a linear map and a residual MLP in each direction.

    Args:
        width: H of the rows.
        dim: D of the codes.
        intermediate_size: width of the hidden layers.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.encode = nn.Linear(width, dim, bias=False)
        self.encode_up = nn.Linear(width, intermediate_size)
        self.encode_down = nn.Linear(intermediate_size, dim)
        self.decode = nn.Linear(dim, width, bias=False)
        self.decode_up = nn.Linear(dim, intermediate_size)
        self.decode_down = nn.Linear(intermediate_size, width)
        start_as_zero(self.encode_down, self.decode_down)

    def codes(self, rows: torch.Tensor) -> torch.Tensor:
        """Code rows `[n, H]` as `[n, D]`."""
        given = (rows - self.mean) / self.deviation
        hidden = nn.functional.gelu(self.encode_up(given))
        result: torch.Tensor = self.encode(given) + self.encode_down(hidden)
        return result

    def rows(self, codes: torch.Tensor, num_rows: int) -> torch.Tensor:  # noqa: ARG002
        """Estimate the rows `[n, H]` of codes `[n, D]`."""
        hidden = nn.functional.gelu(self.decode_up(codes))
        made = self.decode(codes) + self.decode_down(hidden)
        result: torch.Tensor = made * self.deviation + self.mean
        return result


class Resampler(nn.Module):
    """Means of segments under a linear map, to which attention over all rows adds.

    What is added starts as zero.

    Args:
        width: H of the rows.
        dim: D of the codes.
        num_slots: most rows of a compressed latent.
        attention_size: width of queries, keys and values.
        num_heads: divides attention_size.
        intermediate_size: width of the hidden layers.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        width: int,
        dim: int,
        num_slots: int,
        attention_size: int,
        num_heads: int,
        intermediate_size: int,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.encode = nn.Linear(width, dim, bias=False)
        self.decode = nn.Linear(dim, width, bias=False)
        self.read = nn.Linear(width, attention_size)
        self.place = nn.Linear(POSITION_WIDTH, attention_size)
        self.norm = nn.LayerNorm(attention_size)
        self.query = nn.Parameter(torch.randn(num_slots, attention_size))
        self.k, self.v = (nn.Linear(attention_size, attention_size) for _ in range(2))
        self.o = nn.Linear(attention_size, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, intermediate_size)
        self.down = nn.Linear(intermediate_size, dim)
        self.asked = nn.Linear(POSITION_WIDTH, attention_size)
        self.back_k, self.back_v = (nn.Linear(dim, attention_size) for _ in range(2))
        self.back_norm = nn.LayerNorm(attention_size)
        self.back_up = nn.Linear(attention_size, intermediate_size)
        self.back_down = nn.Linear(intermediate_size, width)
        start_as_zero(self.o, self.down, self.back_down)

    def codes(self, rows: torch.Tensor) -> torch.Tensor:
        """Code rows `[L, H]`, L at least 1, as `[min(slots, L), D]`."""
        given = (rows - self.mean) / self.deviation
        num_slots = min(len(self.query), len(rows))
        bounds = [slot * len(rows) // num_slots for slot in range(num_slots + 1)]
        means = torch.stack([given[start:end].mean(0) for start, end in pairwise(bounds)])
        places = torch.from_numpy(positions(len(rows))).to(rows.device)
        read = self.norm(self.read(given) + self.place(places))
        seen = attended(self.query[:num_slots], self.k(read), self.v(read), self.num_heads)
        codes = self.encode(means) + self.o(seen)
        result: torch.Tensor = codes + self.down(nn.functional.gelu(self.up(self.norm2(codes))))
        return result

    def rows(self, codes: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Estimate the rows `[num_rows, H]` of codes `[min(slots, num_rows), D]`."""
        starts = [slot * num_rows // len(codes) for slot in range(len(codes) + 1)]
        lengths = torch.tensor([end - start for start, end in pairwise(starts)])
        queries = self.asked(torch.from_numpy(positions(num_rows)).to(codes.device))
        keys, values = self.back_k(codes), self.back_v(codes)
        seen = queries + attended(queries, keys, values, self.num_heads)
        hidden = nn.functional.gelu(self.back_up(self.back_norm(seen)))
        made = self.decode(codes).repeat_interleave(lengths.to(codes.device), dim=0)
        result: torch.Tensor = (made + self.back_down(hidden)) * self.deviation + self.mean
        return result


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
        start_as_zero(self.o, self.down)

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
        message = message + self.o(attended(queries, self.k(read), self.v(read), self.num_heads))
        hidden = nn.functional.gelu(self.up(self.norm2(message)))
        result: torch.Tensor = message + self.down(hidden)
        return result


def start_as_zero(*layers: nn.Linear) -> None:
    """Set weights and biases to zero, so that what follows adds nothing at first."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def attended(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """Attend with several heads, without masks.

    Args:
        queries: `[n, d]`.
        keys: `[m, d]`.
        values: `[m, d]`.
        num_heads: divides d.

    Returns:
        `[n, d]`.
    """
    heads = [each.unflatten(1, (num_heads, -1)).transpose(0, 1) for each in (queries, keys, values)]
    result = nn.functional.scaled_dot_product_attention(*heads)
    return result.transpose(0, 1).flatten(1)
