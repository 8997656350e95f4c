"""Which full latent a compressed one resembles most, in memory that latents do not enlarge. Pure.

A latent is sketched: each of its values is added, with a random sign, to one of 8,192 sums (a count
sketch). Scalar products of sketches estimate those of the latents, whatever their lengths; the
standard error of a cosine is 0.011.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from latentwire.compressors.base import Rows

SKETCH_SIZE = 8192
# Full latents that a compressed one is compared with: 64 MiB of sketches.
MAX_CANDIDATES = 2000
# Values hashed at a time; the hashes of 64 chunks take 12 MiB.
_CHUNK_VALUES = 1 << 16
_KEPT_CHUNKS = 64
_TOLERANCE = 1e-6

Sketch = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rank:
    """Where a latent's own full one stands among all.

    Attributes:
        num_better: full latents that the compressed one resembles more than its own.
        num_equal: full latents that it resembles as much, its own among them.
    """

    num_better: int
    num_equal: int

    @property
    def recall(self) -> float:
        """Probability that its own is the first, if equal ones are in random order."""
        return 0.0 if self.num_better else 1 / self.num_equal

    @property
    def reciprocal(self) -> float:
        """Reciprocal of the rank; equal ones share the middle of theirs."""
        return 1 / (self.num_better + (self.num_equal + 1) / 2)


class Candidates:
    """The full latents among which the compressed ones look for their own.

    Args:
        sketches: `[N, SKETCH_SIZE]` of the full latents.
    """

    def __init__(self, sketches: npt.NDArray[np.float32]) -> None:
        centred = sketches - sketches.mean(axis=0, dtype=np.float64).astype(np.float32)
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        self._directions = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)

    def __len__(self) -> int:
        """The number of full latents."""
        return len(self._directions)

    def rank(self, sketch: Sketch, own: int) -> Rank:
        """Compare a compressed latent with all full ones, by cosine.

        Args:
            sketch: of its estimate, less the mean of those of the same codec. Without this, latents
                that resemble the mean would seem to resemble each one.
            own: position of its own full latent.
        """
        norm = np.linalg.norm(sketch)
        direction = (sketch / norm if norm > 0 else sketch).astype(np.float32)
        cosines = self._directions @ direction
        differences = cosines - cosines[own]
        num_equal = int((np.abs(differences) <= _TOLERANCE).sum())
        return Rank(int((differences > _TOLERANCE).sum()), num_equal)


def sketch_of(rows: Rows) -> Sketch:
    """Return the sketch `[SKETCH_SIZE]` of a latent.

    Args:
        rows: `[L, H]` float32. Rows that are missing at the end count as zeros.
    """
    flat = rows.reshape(-1)
    found = np.zeros(SKETCH_SIZE)
    for chunk, start in enumerate(range(0, len(flat), _CHUNK_VALUES)):
        values = flat[start : start + _CHUNK_VALUES]
        places, signs = _hashes(chunk)
        signed = values * signs[: len(values)]
        found += np.bincount(places[: len(values)], weights=signed, minlength=SKETCH_SIZE)
    return found


@lru_cache(maxsize=_KEPT_CHUNKS)
def _hashes(chunk: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8]]:
    """Return the sum and the sign of each value of a chunk, which depend on its position alone."""
    rng = np.random.default_rng([0, chunk])
    places = rng.integers(0, SKETCH_SIZE, _CHUNK_VALUES, dtype=np.uint16)
    return places, rng.integers(0, 2, _CHUNK_VALUES, dtype=np.int8) * np.int8(2) - np.int8(1)
