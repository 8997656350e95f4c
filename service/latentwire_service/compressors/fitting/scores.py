"""How well a compressor reconstructs held-out latents, and how small it makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from latentwire.compressors.base import Compressor, Rows
from latentwire_service.compressors.fitting.recipe import Scores
from latentwire_service.fitting.samples import Sample


def reconstruction_scores(
    compressor: Compressor,
    samples: Sequence[Sample],
    on_progress: Callable[[], None] = lambda: None,
) -> Scores:
    """Compress latents, estimate them again and compare.

    Args:
        compressor: as users apply it.
        samples: at least one.
        on_progress: called after each sample.

    Returns:
        Means over the latents: `relative_error`, the Frobenius norm of the difference divided by
        that of the latent; `cosine`, the mean over the rows; `bytes` of all arrays and
        `full_bytes` of the latent, in float32. And `num_tasks`.
    """
    found = []
    for sample in samples:
        arrays = compressor.compress(sample.rows)
        estimate = compressor.decompress(arrays, len(sample.rows))
        num_bytes = sum(array.nbytes for array in arrays.values())
        found.append((*_compared(sample.rows, estimate), num_bytes, sample.rows.nbytes))
        on_progress()
    names = ("relative_error", "cosine", "bytes", "full_bytes")
    means = {
        name: round(float(np.mean(each)), 4)
        for name, each in zip(names, zip(*found, strict=True), strict=True)
    }
    return {**means, "num_tasks": float(len(samples))}


def _compared(rows: Rows, estimate: Rows) -> tuple[float, float]:
    wanted, given = rows.astype(np.float64), estimate.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(wanted - given)) / norm if norm else 0.0
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(given, axis=1)
    # A row of zeros has no direction, so it agrees with none.
    cosines = np.einsum("ij,ij->i", wanted, given) / np.where(lengths > 0, lengths, 1)
    return error, float(cosines.mean())
