"""The arithmetic of the compressors without training, in float64.

Every function takes float32 rows that were checked. Squares and sums of finite float32 values stay
far inside the range of float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentwire.compressors.base import Rows

Matrix = npt.NDArray[np.float64]

# Sums below this part of their largest possible value are rounding, not a sign.
_SIGN_TOLERANCE = 1e-6
# Squared lengths below this part of the largest one are zero: the rounding of float32 rows.
_RESIDUAL_TOLERANCE = 1e-12
# Squared lengths that differ by less than this part are equal.
_TIE_TOLERANCE = 1e-9


def segment_means(rows: Rows, num_segments: int) -> Matrix:
    """Return the means of the rows `[i * L // K, (i + 1) * L // K)`.

    Args:
        rows: `[L, H]`.
        num_segments: K, at most L.

    Returns:
        `[K, H]`.
    """
    if num_segments == 0:
        return np.zeros((0, rows.shape[1]))
    bounds = np.arange(num_segments + 1) * len(rows) // num_segments
    sums = np.add.reduceat(rows, bounds[:-1], axis=0, dtype=np.float64)
    result: Matrix = sums / np.diff(bounds)[:, None]
    return result


def cosines(num_kept: int, num_rows: int) -> Matrix:
    """Return the first rows of the orthonormal DCT-II over `num_rows` steps.

    Returns:
        `[num_kept, num_rows]`: entry (i, t) is `c_i cos(pi (t + 1/2) i / L)`, where c_0 is
        sqrt(1 / L) and every other c_i is sqrt(2 / L).
    """
    if num_rows == 0:
        return np.zeros((0, 0))
    frequency = np.arange(num_kept)[:, None]
    # Modulo the period, in whole numbers: cos of a large argument loses digits.
    phase = (2 * np.arange(num_rows) + 1) * frequency % (4 * num_rows)
    matrix: Matrix = np.cos(np.pi / (2 * num_rows) * phase) * np.sqrt(2 / num_rows)
    matrix[:1] *= np.sqrt(0.5)
    return matrix


def principal_directions(rows: Rows, num_kept: int) -> Matrix:
    """Return the right singular directions of the rows, each scaled by s / sqrt(L).

    They come from the eigenvectors of the smaller Gram matrix, several times as fast as a singular
    value decomposition. In float64 the Gram matrix of float32 rows loses nothing that float32
    rows determine.

    Args:
        rows: `[L, H]`.
        num_kept: K, at most L.

    Returns:
        `[K, H]`, the longest first. Rows beyond the rank are zeros. The sum of each direction's
        left singular vector is positive; if it is zero, the direction's first component of largest
        magnitude is positive.
    """
    wide = rows.astype(np.float64)
    num_rows, width = wide.shape
    result = np.zeros((num_kept, width))
    num_directions = min(num_kept, width)
    if num_directions == 0:
        return result
    is_short = num_rows <= width
    values, vectors = np.linalg.eigh(wide @ wide.T if is_short else wide.T @ wide)
    # Ascending: the last ones are the longest.
    values, vectors = values[::-1][:num_directions], vectors[:, ::-1][:, :num_directions]
    lengths = np.sqrt(np.maximum(values, 0))
    lengths[values <= values[0] * min(num_rows, width) * np.finfo(np.float64).eps] = 0
    directions = vectors.T @ wide if is_short else vectors.T * lengths[:, None]
    directions[lengths == 0] = 0
    signs = _signs(directions, directions @ wide.sum(axis=0), lengths * lengths * num_rows**0.5)
    result[:num_directions] = directions * signs[:, None] / num_rows**0.5
    return result


def _signs(directions: Matrix, sums: Matrix, largest: Matrix) -> Matrix:
    """Return 1 or -1 for each direction.

    Args:
        directions: `[K, H]`.
        sums: `[K]`: the sum of each left singular vector, times a positive factor.
        largest: `[K]`: what the magnitude of each sum cannot exceed.
    """
    magnitudes = np.abs(directions)
    # The first of equal ones, also when rounding made them differ.
    is_largest = magnitudes >= magnitudes.max(axis=1, keepdims=True) * (1 - _SIGN_TOLERANCE)
    components = np.take_along_axis(directions, is_largest.argmax(axis=1)[:, None], axis=1)[:, 0]
    deciding = np.where(np.abs(sums) > largest * _SIGN_TOLERANCE, sums, components)
    return np.where(deciding < 0, -1.0, 1.0)


def novel_places(rows: Rows, num_kept: int) -> npt.NDArray[np.intp]:
    """Choose rows one after another, always the one farthest from the span of those chosen.

    This is QR with column pivoting over the rows, computed as the pivoted Cholesky decomposition of
    their Gram matrix. The first of equally far rows is chosen; distances below a millionth of the
    longest row's length count as zero.

    Args:
        rows: `[L, H]`.
        num_kept: K, at most L.

    Returns:
        `[K]` places of the chosen rows, ascending.
    """
    num_rows = len(rows)
    if num_kept == num_rows:
        return np.arange(num_rows)
    wide = rows.astype(np.float64)
    residuals = np.einsum("ij,ij->i", wide, wide)
    zero = residuals.max() * _RESIDUAL_TOLERANCE
    factors = np.zeros((num_kept, num_rows))
    is_free = np.ones(num_rows, dtype=np.bool_)
    for step in range(num_kept):
        candidates = np.where(is_free & (residuals > zero), residuals, 0.0)
        limit = candidates.max() * (1 - _TIE_TOLERANCE)
        place = int(np.argmax(is_free & (candidates >= limit)))
        is_free[place] = False
        if candidates[place] > 0:
            column = wide @ wide[place] - factors[:step].T @ factors[:step, place]
            factors[step] = column / np.sqrt(candidates[place])
            residuals = residuals - factors[step] ** 2
    return np.flatnonzero(~is_free)


def interpolate(kept: Rows, places: npt.NDArray[np.intp], num_rows: int) -> Matrix:
    """Estimate all rows from some: linear between two of them, constant outside of them.

    Args:
        kept: `[K, H]`.
        places: `[K]` of the kept rows, ascending, below `num_rows`.
        num_rows: L.

    Returns:
        `[L, H]`: exactly the kept rows at their places.
    """
    if num_rows == 0:
        return np.zeros((0, kept.shape[1]))
    steps = np.arange(num_rows)
    after = np.clip(np.searchsorted(places, steps), 0, len(places) - 1)
    before = np.clip(np.searchsorted(places, steps, side="right") - 1, 0, len(places) - 1)
    distance = np.maximum(places[after] - places[before], 1)
    weight = (np.clip(steps - places[before], 0, None) / distance)[:, None]
    # Outside of the kept rows both neighbours are the same row.
    weight[before == after] = 0
    wide = kept.astype(np.float64)
    result: Matrix = wide[before] * (1 - weight) + wide[after] * weight
    return result
