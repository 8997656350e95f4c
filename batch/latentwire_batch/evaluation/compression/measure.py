"""What each codec costs and loses by itself: bytes, times, reconstruction, retrieval. No service.

Two passes over the tasks. The first measures, and sketches the full latents; the second lets each
compressed latent look for its own full one. Of a task, seven numbers per codec stay in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latentwire_batch.evaluation.compression.codecs import (
    Codec,
    CodecError,
    Payload,
    mean_cosine,
    relative_error,
)
from latentwire_batch.evaluation.compression.sketches import (
    MAX_CANDIDATES,
    SKETCH_SIZE,
    Candidates,
    Sketch,
    sketch_of,
)
from latentwire_batch.evaluation.samples import EvaluationSet, Pair, Rows

COLUMNS = (
    *("num_bytes", "compress_ms", "decompress_ms"),
    *("relative_error", "cosine", "recall", "reciprocal_rank"),
)
_NUM_MEASURED = 5

Numbers = npt.NDArray[np.float64]


@dataclass
class Measurements:
    """What was measured so far.

    Attributes:
        codecs: in the order of the rows of `numbers`.
        numbers: `[codecs, COLUMNS]` by the index of the task; NaN where there is none: of a codec
            that cannot be undone, and the retrieval of tasks that are no candidates.
        full_bytes: size of the full latent in float32, by the index of the task.
        refused: reason by the id of a task that a codec refused.
        num_candidates: full latents among which the compressed ones looked for their own.
    """

    codecs: Sequence[Codec]
    numbers: dict[int, Numbers] = field(default_factory=dict)
    full_bytes: dict[int, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    num_candidates: int = 0

    def of(self, position: int, indexes: Sequence[int]) -> dict[str, Numbers]:
        """Return the numbers `[tasks]` of one codec, by the name of the column.

        Args:
            position: of the codec.
            indexes: of the tasks.
        """
        table = np.array([self.numbers[index][position] for index in indexes])
        return {name: table[:, column] for column, name in enumerate(COLUMNS)}


class _Sketches:
    """Sketches of the first full latents, and the mean sketch of each codec's estimates."""

    def __init__(self, num_codecs: int, num_tasks: int) -> None:
        self.full = np.empty((min(MAX_CANDIDATES, num_tasks), SKETCH_SIZE), dtype=np.float32)
        self.sums = np.zeros((num_codecs, SKETCH_SIZE))
        # Position of each candidate, by the index of its task.
        self.places: dict[int, int] = {}

    @property
    def is_filled(self) -> bool:
        return len(self.places) == len(self.full)

    def add(self, index: int, rows: Rows, estimates: Sequence[Rows | None]) -> None:
        if self.is_filled:
            return
        self.full[len(self.places)] = sketch_of(rows)
        self.places[index] = len(self.places)
        for total, estimate in zip(self.sums, estimates, strict=True):
            if estimate is not None:
                total += sketch_of(estimate)

    def candidates(self) -> Candidates:
        return Candidates(self.full[: len(self.places)])

    def centred(self, position: int, estimate: Rows) -> Sketch:
        centred: Sketch = sketch_of(estimate) - self.sums[position] / len(self.places)
        return centred


def measure(tasks: EvaluationSet, found: Measurements) -> Iterator[None]:
    """Measure all tasks; yields after each step, twice per task that is a candidate.

    Args:
        tasks: to measure.
        found: filled.

    Raises:
        InputError: the dataset cannot be read.
    """
    sketches = _Sketches(len(found.codecs), tasks.num_tasks)
    for pair in tasks.pairs():
        rows = pair.sample.rows
        try:
            estimates = _measure_task(pair, found)
        except CodecError as error:
            found.refused[pair.sample.task_id] = str(error)
        else:
            sketches.add(pair.index, rows, estimates)
        yield
    yield from _retrieve(tasks, sketches, found)


def num_steps(tasks: EvaluationSet) -> int:
    """Return how often `measure` yields, if all tasks are usable."""
    return tasks.num_tasks + min(MAX_CANDIDATES, tasks.num_tasks)


def _measure_task(pair: Pair, found: Measurements) -> list[Rows | None]:
    """Measure one task, and return the codecs' estimates of its latent.

    Raises:
        CodecError: a codec does not take the latent.
    """
    rows = pair.sample.rows
    numbers = np.full((len(found.codecs), len(COLUMNS)), np.nan)
    estimates: list[Rows | None] = []
    for line, codec in zip(numbers, found.codecs, strict=True):
        started_s = time.perf_counter()
        payload = codec.encode(rows)
        encoded_s = time.perf_counter()
        line[:2] = payload.num_bytes, (encoded_s - started_s) * 1000
        estimate = _estimate(codec, payload)
        if estimate is not None:
            line[2] = (time.perf_counter() - encoded_s) * 1000
            line[3:_NUM_MEASURED] = relative_error(estimate, rows), mean_cosine(estimate, rows)
        estimates.append(estimate)
    found.numbers[pair.index] = numbers
    found.full_bytes[pair.index] = rows.nbytes
    return estimates


def _estimate(codec: Codec, payload: Payload) -> Rows | None:
    """Return a codec's estimate; None if its compressor has no way back."""
    try:
        return codec.estimate(payload)
    except CodecError:
        return None


def _retrieve(tasks: EvaluationSet, sketches: _Sketches, found: Measurements) -> Iterator[None]:
    candidates = sketches.candidates()
    found.num_candidates = len(candidates)
    num_left = len(candidates)
    for pair in tasks.pairs():
        own = sketches.places.get(pair.index)
        if own is None:
            continue
        for position, codec in enumerate(found.codecs):
            estimate = _estimate(codec, codec.encode(pair.sample.rows))
            if estimate is not None:
                rank = candidates.rank(sketches.centred(position, estimate), own)
                found.numbers[pair.index][position, _NUM_MEASURED:] = rank.recall, rank.reciprocal
        yield
        num_left -= 1
        if not num_left:
            return
