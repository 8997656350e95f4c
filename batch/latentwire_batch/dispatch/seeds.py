"""Seeds: one for the dataset, and one per row, whichever process computes the row and when."""

from __future__ import annotations

import hashlib
import secrets

from latentwire.constants import MAX_SEED


def draw_seed() -> int:
    """Draw a dataset seed from the system's randomness, within `0..MAX_SEED`."""
    return secrets.randbelow(MAX_SEED + 1)


def row_seed(dataset_seed: int, index: int) -> int:
    """Derive the sampling seed of one row.

    Both numbers, as little-endian unsigned 64-bit integers, are hashed to 8 bytes of BLAKE2b. The
    digest is read in the same way, and its top bit is cleared. So neighbouring rows get unrelated
    seeds, and the result never depends on a library's random number generator.

    Args:
        dataset_seed: the seed of the whole collection, `0..MAX_SEED`.
        index: the row's position in the input, counted from 0.

    Returns:
        A seed within `0..MAX_SEED`.
    """
    message = dataset_seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little") & MAX_SEED
