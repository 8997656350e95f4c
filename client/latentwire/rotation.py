"""A fixed random rotation of hidden rows, which any language can repeat from its description.

A few features of a hidden row are often many times larger than all others, and a number format with
one scale per row then has no codes left for the small ones. A rotation spreads every feature over
the whole row. `docs/number-formats.md` defines it; the definition must not change, because stored
files and requests name a rotation by its seed alone.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]

MAX_ROTATED_WIDTH = 2**16
"""Longest row that is rotated. It bounds the memory that a request's width and seed can take."""

_NUM_ROUNDS = 3
_WORD_BYTES = 8
# Rows are rotated in pieces of so many values, which fit into a core's cache: 512 rows of 3584
# values take 40 ms instead of 110 ms.
_PIECE_VALUES = 2**17


class Rotation:
    """An orthogonal matrix R of one width, applied without being stored.

    Each of three rounds flips signs, permutes, and transforms blocks with orthonormal Hadamard
    matrices; their lengths are the powers of two that add up to the width, largest first. Signs and
    permutations come from SHAKE-256 of the seed. Only float32 additions, subtractions and
    multiplications in a fixed order are used, so the results have the same bits everywhere, however
    many rows are rotated at a time.

    Args:
        seed: names the rotation.
        width: length of the rows, 0 to `MAX_ROTATED_WIDTH`.
    """

    def __init__(self, seed: int, width: int) -> None:
        rounds = [_signs_and_order(seed, number, width) for number in range(_NUM_ROUNDS)]
        self._width = width
        self._orders = [order for _, order in rounds]
        self._inverse_orders = [np.argsort(order) for order in self._orders]
        # Signs after the permutation: `signs[order] * x[order]` is `(signs * x)[order]`.
        self._signs = [signs[order, None] for signs, order in rounds]

    def forward(self, rows: Rows) -> Rows:
        """Return R x for each row x.

        Args:
            rows: `[n, width]` float32; values between 2^-100 and 2^100 neither overflow nor vanish.

        Returns:
            `[n, width]` float32, C order, of its own memory.
        """
        rotated = np.empty(rows.shape, dtype=np.float32)
        for piece in _pieces(rows):
            columns = np.array(rows[piece].T, dtype=np.float32, order="C")
            for signs, order in zip(self._signs, self._orders, strict=True):
                columns = columns[order]
                columns *= signs
                _transform_blocks(columns)
            rotated[piece] = columns.T
        return rotated

    def inverse(self, rows: Rows) -> Rows:
        """Return the transpose of R, which is its inverse, times each row; see `forward`."""
        restored = np.empty(rows.shape, dtype=np.float32)
        rounds = list(zip(self._signs, self._inverse_orders, strict=True))
        for piece in _pieces(rows):
            columns = np.array(rows[piece].T, dtype=np.float32, order="C")
            for signs, order in reversed(rounds):
                _transform_blocks(columns)
                columns *= signs
                columns = columns[order]
            restored[piece] = columns.T
        return restored


@lru_cache(maxsize=16)
def rotation_of(seed: int, width: int) -> Rotation:
    """Return the rotation of a seed and a width; the latest ones are kept."""
    return Rotation(seed, width)


def _signs_and_order(
    seed: int, number: int, width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return the signs and the permutation of one round, `[width]` each."""
    num_sign_bytes = -(-width // 8)
    text = f"latentwire-rotation:{seed}:{number}"
    stream = hashlib.shake_256(text.encode()).digest(num_sign_bytes + _WORD_BYTES * width)
    packed = np.frombuffer(stream, dtype=np.uint8, count=num_sign_bytes)
    bits = np.unpackbits(packed, count=width, bitorder="little")
    words = np.frombuffer(stream, dtype="<u8", offset=num_sign_bytes)
    signs = np.where(bits == 1, np.float32(-1), np.float32(1))
    return signs, np.argsort(words, kind="stable")


def _transform_blocks(columns: Rows) -> None:
    """Transform each block of a `[width, n]` matrix in place."""
    width, start = len(columns), 0
    for bit in reversed(range(width.bit_length())):
        if width >> bit & 1:
            _hadamard(columns[start : start + (1 << bit)], bit)
            start += 1 << bit


def _hadamard(block: Rows, num_stages: int) -> None:
    """Multiply a `[2^num_stages, n]` matrix with the orthonormal Hadamard matrix, in place."""
    for stage in range(num_stages):
        pairs = block.reshape(-1, 2, 1 << stage, block.shape[1])
        first, second = pairs[:, 0], pairs[:, 1]
        differences = first - second
        first += second
        second[...] = differences
    block *= np.float32(2.0 ** (-num_stages / 2))


def _pieces(rows: Rows) -> list[slice]:
    num_rows, width = rows.shape
    size = max(1, _PIECE_VALUES // max(1, width))
    return [slice(start, start + size) for start in range(0, num_rows, size)]
