"""Seeds: one for the dataset, and one per row, whichever process computes the row and when."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from latentwire.constants import MAX_SEED

# JavaScript and other readers of JSON keep whole numbers exactly up to 2^53.
ROW_SEED_BITS = 53
# Of outputs whose settings do not state it.
EARLIER_ROW_SEED_BITS = 63


@dataclass(frozen=True)
class Seeds:
    """What is chosen once for a dataset: its seed, and its date.

    Attributes:
        dataset_seed: `0..MAX_SEED`.
        row_seed_bits: each row's seed is below two to this power.
        date: that chat templates write, as ISO 8601; None where none does, and in outputs of
            earlier versions.
    """

    dataset_seed: int
    row_seed_bits: int = ROW_SEED_BITS
    date: str | None = None

    def of_row(self, index: int) -> int:
        """Return the sampling seed of one row; see `row_seed`."""
        return row_seed(self.dataset_seed, index, self.row_seed_bits)


def draw_seed() -> int:
    """Draw a dataset seed from the system's randomness, below 2^53."""
    return secrets.randbelow(1 << ROW_SEED_BITS)


def today() -> str:
    """Return the date in UTC, as ISO 8601: ranks in different time zones have the same."""
    return datetime.now(UTC).date().isoformat()


def row_seed(dataset_seed: int, index: int, bits: int = ROW_SEED_BITS) -> int:
    """Derive the sampling seed of one row.

    Both numbers, as little-endian unsigned 64-bit integers, are hashed to 8 bytes of BLAKE2b. The
    digest is read in the same way, and only its lowest bits are kept. So neighbouring rows get
    unrelated seeds, and the result never depends on a library's random number generator.

    Args:
        dataset_seed: the seed of the whole collection, `0..MAX_SEED`.
        index: the row's position in the input, counted from 0.
        bits: of the result, at most 63.

    Returns:
        A seed below two to the power of `bits`, and within `0..MAX_SEED`.
    """
    message = dataset_seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    digest = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
    return digest & MAX_SEED & ((1 << bits) - 1)
