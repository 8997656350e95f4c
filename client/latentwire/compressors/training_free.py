"""Compressors without training: they choose rows, average them or transform them.

Formulas and what each is good for: `docs/compressors.md`. All arithmetic is in float64, so that no
finite float32 row overflows on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from latentwire.compressors.base import (
    COMPRESSED,
    CompressorError,
    Output,
    Rows,
    checked_arrays,
    checked_count,
    checked_k,
    checked_result,
    checked_rows,
    compressor_hash,
)
from latentwire.compressors.linear import (
    cosines,
    interpolate,
    novel_places,
    principal_directions,
    segment_means,
)

PLACES = "places"
# Above it float32 does not hold every whole number, so the array `places` would not be exact.
_MAX_PLACED_ROWS = 1 << 24

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _TrainingFree:
    """What all of them have in common.

    Attributes:
        kind: its name, too.
        k: most rows that it returns.
        output: what the main array holds.
    """

    kind: str
    k: int
    output: Output

    @property
    def name(self) -> str:
        return self.kind

    @property
    def parameters(self) -> Mapping[str, int]:
        return MappingProxyType({"k": self.k})

    @property
    def content_hash(self) -> str:
        return compressor_hash(self.kind, self.parameters)

    @property
    def source_width(self) -> None:
        return None


@dataclass(frozen=True)
class _Selection(_TrainingFree):
    """Keeps rows whose places follow from K and L.

    Attributes:
        places: K and L to the places of the kept rows, ascending.
        interpolates: whether the rows between are estimated from their neighbours; otherwise
            they are zeros.
    """

    places: Callable[[int, int], Places]
    interpolates: bool = False

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows)
        places = self.places(min(self.k, len(checked)), len(checked))
        return {COMPRESSED: np.ascontiguousarray(checked[places])}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        kept = checked_arrays(arrays)[COMPRESSED]
        checked_count(num_rows, len(kept), self.k)
        places = self.places(len(kept), num_rows)
        if self.interpolates:
            return checked_result(interpolate(kept, places, num_rows))
        result = np.zeros((num_rows, kept.shape[1]), np.float32)
        result[places] = kept
        return result


@dataclass(frozen=True)
class _MeanPool(_TrainingFree):
    """Keeps the mean of each of K segments of almost equal length."""

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows)
        num_kept = min(self.k, len(checked))
        return {COMPRESSED: checked_result(segment_means(checked, num_kept))}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        means = checked_arrays(arrays)[COMPRESSED]
        checked_count(num_rows, len(means), self.k)
        # Row t is in the last segment that begins at t or before.
        starts = np.arange(len(means)) * num_rows // max(1, len(means))
        return means[np.searchsorted(starts, np.arange(num_rows), side="right") - 1]


@dataclass(frozen=True)
class _Svd(_TrainingFree):
    """Keeps the directions along which the rows are longest; the order of the rows is lost."""

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows)
        num_kept = min(self.k, len(checked))
        return {COMPRESSED: checked_result(principal_directions(checked, num_kept))}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        directions = checked_arrays(arrays)[COMPRESSED]
        checked_count(num_rows, len(directions), self.k)
        return np.repeat(directions[:1], num_rows, axis=0)


@dataclass(frozen=True)
class _Dct(_TrainingFree):
    """Keeps the lowest frequencies of every column over the steps."""

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows)
        matrix = cosines(min(self.k, len(checked)), len(checked))
        return {COMPRESSED: checked_result(matrix @ checked.astype(np.float64))}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        coefficients = checked_arrays(arrays)[COMPRESSED]
        checked_count(num_rows, len(coefficients), self.k)
        matrix = cosines(len(coefficients), num_rows)
        return checked_result(matrix.T @ coefficients.astype(np.float64))


@dataclass(frozen=True)
class _Novel(_TrainingFree):
    """Keeps the rows that the other kept ones explain least, in the order of steps."""

    def compress(self, rows: Rows) -> dict[str, Rows]:
        checked = checked_rows(rows)
        if len(checked) > _MAX_PLACED_ROWS:
            raise CompressorError(f"must be at most {_MAX_PLACED_ROWS} rows", "rows")
        places = novel_places(checked, min(self.k, len(checked)))
        # A latent without rows has places of width 1: a width of 0 is no matrix on the wire.
        return {
            COMPRESSED: np.ascontiguousarray(checked[places]),
            PLACES: places.astype(np.float32).reshape(-1, 1),
        }

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        checked = checked_arrays(arrays, PLACES)
        kept, places = checked[COMPRESSED], checked[PLACES]
        checked_count(num_rows, len(kept), self.k)
        chosen = checked_places(places, len(kept), num_rows)
        return checked_result(interpolate(kept, chosen, num_rows))


def checked_places(places: Rows, num_kept: int, num_rows: int) -> Places:
    """Return the array `places` as whole numbers.

    Args:
        places: as it was given, float32.
        num_kept: rows of the main array.
        num_rows: L of the latent.

    Returns:
        `[num_kept]`, ascending.

    Raises:
        CompressorError: they have another shape, do not ascend or are outside of the latent.
    """
    if places.shape != (num_kept, 1):
        raise CompressorError(f"must have the shape [{num_kept}, 1]", PLACES)
    column = places[:, 0]
    is_inside = np.all((column >= 0) & (column < num_rows) & (column == np.floor(column)))
    if not is_inside or np.any(np.diff(column) <= 0):
        raise CompressorError(f"must ascend and be below {num_rows}", PLACES)
    return column.astype(np.intp)


def _last(num_kept: int, num_rows: int) -> Places:
    return np.arange(num_rows - num_kept, num_rows)


def _stride(num_kept: int, num_rows: int) -> Places:
    return np.round(np.linspace(0, num_rows - 1, num_kept)).astype(np.intp)


_MAKERS: Mapping[str, Callable[[int], _Selection | _MeanPool | _Svd | _Dct | _Novel]] = {
    "first": lambda k: _Selection("first", k, "rows", lambda num_kept, _: np.arange(num_kept)),
    "last": lambda k: _Selection("last", k, "rows", _last),
    "stride": lambda k: _Selection("stride", k, "rows", _stride, interpolates=True),
    "mean-pool": lambda k: _MeanPool("mean-pool", k, "rows"),
    "svd": lambda k: _Svd("svd", k, "rows"),
    "dct": lambda k: _Dct("dct", k, "coefficients"),
    "novel": lambda k: _Novel("novel", k, "rows"),
}

TRAINING_FREE: tuple[str, ...] = tuple(_MAKERS)
"""Names of the built-in compressors."""

RESERVED_NAMES = frozenset({*TRAINING_FREE, "full"})
"""Names that no other compressor has. `full` stands for a latent that is not compressed."""


def training_free(name: str, k: int | None) -> _Selection | _MeanPool | _Svd | _Dct | _Novel:
    """Return a built-in compressor.

    Args:
        name: one of `TRAINING_FREE`.
        k: most rows that it shall return.

    Raises:
        CompressorError: k is missing or out of range.
    """
    return _MAKERS[name](checked_k(k, name))
