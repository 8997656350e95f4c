"""Statistics of a stored dataset after one pass: the numbers behind `latentwire inspect`.

Memory: 16 bytes per row, a few arrays as long as the longest latent, and the mean latents of a
sample of fixed size.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latentwire_batch.dataset.reader import StoredRow

# Enough points for a picture; a sample of [2000, 4096] float32 has 32 MB.
MAX_MEANS = 2000
MAX_SAMPLES = 8
_MAX_NAMED_ROWS = 5
_DIGEST_BYTES = 8

Floats = npt.NDArray[np.float64]


@dataclass
class RowNorms:
    """Euclidean norms of hidden rows by their index t; grows with the longest latent.

    Attributes:
        counts: latents that have a row t with a finite norm.
        sums: of the norms.
        squares: sum of the squared norms.
        lows: least norm.
        highs: greatest norm.
    """

    counts: Floats = field(default_factory=lambda: np.zeros(0))
    sums: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))
    lows: Floats = field(default_factory=lambda: np.zeros(0))
    highs: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, norms: Floats) -> None:
        """Add the norms of one latent's rows; norms that are not finite are left out."""
        missing = len(norms) - len(self.counts)
        if missing > 0:
            for name, filler in _FILLERS.items():
                setattr(self, name, np.append(getattr(self, name), np.full(missing, filler)))
        finite = np.flatnonzero(np.isfinite(norms))
        norms = norms[finite]
        self.counts[finite] += 1
        self.sums[finite] += norms
        self.squares[finite] += norms**2
        self.lows[finite] = np.minimum(self.lows[finite], norms)
        self.highs[finite] = np.maximum(self.highs[finite], norms)

    @property
    def means(self) -> Floats:
        """`[longest]` float64: mean norm of row t; NaN where no norm is finite."""
        return np.divide(
            self.sums, self.counts, np.full_like(self.sums, np.nan), where=self.counts > 0
        )

    @property
    def deviations(self) -> Floats:
        """`[longest]` float64: standard deviation of the norms of row t."""
        means = np.nan_to_num(self.means)
        return np.sqrt(np.maximum(self.squares / np.maximum(self.counts, 1) - means**2, 0))


_FILLERS = {"counts": 0.0, "sums": 0.0, "squares": 0.0, "lows": np.inf, "highs": -np.inf}


@dataclass(frozen=True)
class Sample:
    """A row shown to a person.

    Attributes:
        row: its index.
        task_id: its id.
        task: its text.
        plan: the generated text.
        num_hidden_rows: rows of its latent.
    """

    row: int
    task_id: str
    task: str
    plan: str
    num_hidden_rows: int


@dataclass(frozen=True)
class MeanLatent:
    """The mean over the rows of one latent.

    Attributes:
        mean: `[width]` float32.
        num_hidden_rows: rows of the latent.
    """

    mean: npt.NDArray[np.float32]
    num_hidden_rows: int


class Inspection:
    """Everything known after a pass over the rows.

    Attributes:
        num_hidden_rows: of all latents together.
        widths: hidden sizes that occur; one in a sound dataset.
        lengths: number of hidden rows of each row, in order.
        norms: of the hidden rows, by their index.
        num_text_bytes: of tasks, ids and plans, in UTF-8.
        num_nan: values that are not a number.
        num_infinite: values that are infinite.
        bad_rows: the first rows with such values, or with a ragged latent.
        num_ragged: rows with a ragged latent: its rows differ in length.
        samples: a random sample of rows, to show.
        means: mean latents of a random sample of rows.
    """

    def __init__(self) -> None:
        self.num_hidden_rows = 0
        self.widths: set[int] = set()
        self.lengths = array("q")
        self.norms = RowNorms()
        self.num_text_bytes = 0
        self.num_nan = self.num_infinite = self.num_ragged = 0
        self.bad_rows: list[int] = []
        self.samples: list[Sample] = []
        self.means: list[MeanLatent] = []
        self._digests = array("Q")
        # A fixed seed: the same dataset always gives the same samples.
        self._rng = random.Random(0)

    @property
    def num_rows(self) -> int:
        """Rows of the dataset."""
        return len(self.lengths)

    @property
    def num_latent_bytes(self) -> int:
        """Bytes of all latents as float32, uncompressed."""
        width = max(self.widths, default=0)
        return self.num_hidden_rows * width * 4

    def add(self, row: StoredRow) -> None:
        """Add the next row."""
        index = self.num_rows
        text = row.text
        num_hidden_rows, width = row.latent.shape
        self.lengths.append(num_hidden_rows)
        self.num_hidden_rows += num_hidden_rows
        self.num_text_bytes += sum(len(t.encode()) for t in (text.task, text.task_id, text.plan))
        digest = hashlib.blake2b(text.task_id.encode(), digest_size=_DIGEST_BYTES).digest()
        self._digests.append(int.from_bytes(digest, "little"))
        is_bad = row.is_ragged
        self.num_ragged += row.is_ragged
        if num_hidden_rows:
            self.widths.add(width)
            is_bad |= self._add_latent(row.latent)
        if is_bad and len(self.bad_rows) < _MAX_NAMED_ROWS:
            self.bad_rows.append(index)
        place = _reservoir_place(self._rng, index, MAX_SAMPLES)
        if place is not None:
            sample = Sample(index, text.task_id, text.task, text.plan, num_hidden_rows)
            self.samples[place : place + 1] = [sample]

    def duplicates(self) -> tuple[int, list[int]]:
        """Find ids that occur more than once.

        Returns:
            The number of rows that have the id of an earlier row, and the first of these rows.
        """
        digests = np.frombuffer(self._digests, dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        is_repeated = digests[order][1:] == digests[order][:-1]
        rows = np.sort(order[1:][is_repeated])
        return len(rows), [int(row) for row in rows[:_MAX_NAMED_ROWS]]

    def _add_latent(self, latent: npt.NDArray[np.float32]) -> bool:
        """Add a latent's values.

        Returns:
            Whether some of them are not finite.
        """
        norms = np.sqrt(np.einsum("ij,ij->i", latent, latent, dtype=np.float64))
        self.norms.add(norms)
        is_bad = not bool(np.isfinite(norms).all())
        if is_bad:
            self.num_nan += int(np.isnan(latent).sum())
            self.num_infinite += int(np.isinf(latent).sum())
            return True
        place = _reservoir_place(self._rng, self.num_rows - 1, MAX_MEANS)
        if place is not None:
            self.means[place : place + 1] = [MeanLatent(latent.mean(axis=0), len(latent))]
        return False


def inspect_rows(rows: Iterable[StoredRow]) -> Inspection:
    """Inspect all rows, in one pass."""
    inspection = Inspection()
    for row in rows:
        inspection.add(row)
    return inspection


def project(means: list[MeanLatent]) -> Floats:
    """Project mean latents onto their first two principal components.

    Eight lines over numpy's SVD: a dependency on scikit-learn for them would be larger than this
    package.

    Returns:
        `[len(means), 2]`; zeros where there are fewer than two rows or components, or where the
        means differ in width.
    """
    points = np.zeros((len(means), 2))
    if len({len(mean.mean) for mean in means}) > 1:
        return points
    if len(means) < 2:
        return points
    table = np.stack([mean.mean for mean in means]).astype(np.float64)
    table -= table.mean(axis=0)
    left, scales, _ = np.linalg.svd(table, full_matrices=False)
    num_components = min(2, len(scales))
    points[:, :num_components] = left[:, :num_components] * scales[:num_components]
    return points


def _reservoir_place(rng: random.Random, num_before: int, size: int) -> int | None:
    """Return the place of the next item in a reservoir sample; None when it is not drawn."""
    if num_before < size:
        return num_before
    place = rng.randrange(num_before + 1)
    return place if place < size else None
