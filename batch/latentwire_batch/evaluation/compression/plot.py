"""Quality against bytes as a plot of letters. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 64, 16
_LABEL_WIDTH = 8
_SHARED = "+"


@dataclass(frozen=True)
class Point:
    """One codec: its mark, the bytes of a latent, and its quality."""

    mark: str
    num_bytes: float
    quality: float


def text_plot(points: Sequence[Point], up_name: str) -> list[str]:
    """Draw points over a logarithmic axis of bytes.

    Args:
        points: where several meet, a `+` stands for them.
        up_name: what quality is.

    Returns:
        Lines of at most 80 characters; none without points.
    """
    if not points:
        return []
    sizes = [math.log10(max(point.num_bytes, 1)) for point in points]
    qualities = [point.quality for point in points]
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for point, size in zip(points, sizes, strict=True):
        column = _place(size, min(sizes), max(sizes), _WIDTH)
        line = _HEIGHT - 1 - _place(point.quality, min(qualities), max(qualities), _HEIGHT)
        grid[line][column] = point.mark if grid[line][column] == " " else _SHARED
    labels = {
        0: max(qualities),
        (_HEIGHT - 1) // 2: _middle(qualities),
        _HEIGHT - 1: min(qualities),
    }
    lines = [up_name]
    for number, row in enumerate(grid):
        label = f"{labels[number]:.2f}" if number in labels else ""
        lines.append(f"{label:>{_LABEL_WIDTH}} |{''.join(row)}".rstrip())
    lines.append(" " * _LABEL_WIDTH + " +" + "-" * _WIDTH)
    low, high = (f"{10**end:,.0f}" for end in (min(sizes), max(sizes)))
    name = "bytes per latent, logarithmic".center(_WIDTH - len(low) - len(high))
    lines.append(" " * (_LABEL_WIDTH + 2) + low + name + high)
    return lines


def _place(value: float, low: float, high: float, count: int) -> int:
    return round((value - low) / ((high - low) or 1.0) * (count - 1))


def _middle(qualities: Sequence[float]) -> float:
    """Return the value of the labelled line in the middle."""
    share = 1 - ((_HEIGHT - 1) // 2) / (_HEIGHT - 1)
    return min(qualities) + share * (max(qualities) - min(qualities))
