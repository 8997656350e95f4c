"""The tasks of an evaluation, streamed: plan, latent, and the latent of another task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.held_out import is_held_out
from latentwire_batch.dataset.files import DatasetFiles, locate_one_split
from latentwire_batch.dataset.reader import StoredRow, stored_declaration, stored_rows
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place
from latentwire_batch.tasks.arrow_files import input_errors

Rows = npt.NDArray[np.float32]

_REQUIRED_COLUMNS = ("task_id", "plan")
_COUNT_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One task of the dataset.

    Attributes:
        task_id: its id.
        task: its text.
        plan: the sender's text.
        rows: `[L, H_sender]` float32.
    """

    task_id: str
    task: str
    plan: str
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A sample, and the latent of another task.

    Attributes:
        index: position among the evaluated tasks.
        sample: of the task.
        other_rows: `[L', H_sender]` float32: the latent of the next task with another id.
        other_plan: the text of that task's plan.
    """

    index: int
    sample: Sample
    other_rows: Rows
    other_plan: str

    @property
    def task_id(self) -> str:
        """Id of the sample's task."""
        return self.sample.task_id


@dataclass(frozen=True, slots=True)
class HeldOutSplit:
    """Which tasks are evaluated: see `latentwire.held_out`.

    Attributes:
        seed: of the choice.
        fraction: of the tasks; 1 for all.
        meaning: in words.
        further: seed and fraction of further choices, all of which must hold a task out.
    """

    seed: int
    fraction: float
    meaning: str
    further: tuple[tuple[int, float], ...] = ()

    def holds(self, task_id: str) -> bool:
        """Whether a task is held out."""
        choices = ((self.seed, self.fraction), *self.further)
        return all(
            fraction >= 1 or is_held_out(task_id, seed, fraction) for seed, fraction in choices
        )

    def to_json(self) -> dict[str, Any]:
        """Return the split as JSON values."""
        value = {"seed": self.seed, "fraction": self.fraction, "meaning": self.meaning}
        names = ("seed", "fraction")
        further = [dict(zip(names, choice, strict=True)) for choice in self.further]
        return value | ({"further": further} if further else {})


@dataclass(frozen=True, slots=True)
class Declared:
    """What a dataset says about its latents; None where it says nothing."""

    model: str | None = None
    revision: str | None = None
    layer: str | int | None = None
    normed: bool | None = None


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The held-out tasks of a dataset.

    Attributes:
        files: of the dataset.
        split: decides which tasks are evaluated.
        limit: maximum number of tasks; None: all.
        num_rows: rows of the dataset.
        num_tasks: rows to evaluate, if all of them are usable.
        declared: what the dataset says about its latents.
    """

    files: DatasetFiles
    split: HeldOutSplit
    limit: int | None
    num_rows: int
    num_tasks: int
    declared: Declared

    @classmethod
    def from_path(
        cls, path: Place, split: HeldOutSplit, limit: int | None, name: str | None = None
    ) -> EvaluationSet:
        """Find the dataset, check its columns and count its held-out tasks.

        Args:
            path: of the dataset.
            split: decides which tasks are evaluated.
            limit: maximum number of tasks; None: all.
            name: of the dataset's split to read; None: the only one.

        Raises:
            InputError: it cannot be used, or too few tasks are held out.
        """
        files = locate_one_split(path, name)
        with input_errors():
            names = files.schema.names
            missing = [name for name in _REQUIRED_COLUMNS if name not in names]
            if missing:
                raise InputError(f"has no column {', '.join(missing)}")
            num_rows = num_held_out = 0
            for batch in files.batches(lambda _: ["task_id"], _COUNT_BATCH_ROWS):
                ids = batch.column("task_id").to_pylist()
                num_rows += len(ids)
                num_held_out += sum(split.holds(_text(task_id)) for task_id in ids)
        num_tasks = num_held_out if limit is None else min(limit, num_held_out)
        if num_tasks < 2:
            raise InputError(
                f"{num_tasks} of {num_rows} tasks are to be scored, and 2 are the fewest; "
                "--held-out 1 scores all tasks of a dataset that nothing was fitted to"
            )
        return cls(files, split, limit, num_rows, num_tasks, _declared(files))

    def width(self) -> int:
        """Return the width of the first usable latent.

        Raises:
            InputError: there is none.
        """
        for sample in self._samples():
            return int(sample.rows.shape[1])
        raise InputError("none of its held-out rows has a plan and a finite latent")

    def pairs(self) -> Iterator[Pair]:
        """Yield the usable tasks in order.

        Holds four of them at a time, and those of one task that follow each other.

        Raises:
            InputError: the dataset cannot be read, or fewer than two tasks are usable.
        """
        samples = self._samples()
        first = next(samples, None)
        if first is None:
            raise InputError("none of its held-out rows has a plan and a finite latent")
        current, index = first, 0
        second: Sample | None = None
        waiting: list[Sample] = []
        for following in samples:
            if following.task_id == current.task_id:
                # Another plan of the same task is no other task.
                waiting.append(following)
                continue
            second = second or following
            for sample in (current, *waiting):
                yield Pair(index, sample, following.rows, following.plan)
                index += 1
            current, waiting = following, []
        if second is None:
            raise InputError("all of its usable held-out rows have one task_id")
        # The next task of the last one; a dataset may end with plans of its first task.
        other = second if current.task_id == first.task_id else first
        for sample in (current, *waiting):
            yield Pair(index, sample, other.rows, other.plan)
            index += 1

    def _samples(self) -> Iterator[Sample]:
        rows = (row for row in stored_rows(self.files) if self.split.holds(row.text.task_id))
        return (_sample(row) for row in islice(rows, self.limit) if _is_usable(row))


def _is_usable(row: StoredRow) -> bool:
    return bool(row.text.plan and row.latent.size and np.isfinite(row.latent).all())


def _sample(row: StoredRow) -> Sample:
    # A copy: a view would keep the whole batch in memory.
    return Sample(row.text.task_id, row.text.task, row.text.plan, row.latent.copy())


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _declared(files: DatasetFiles) -> Declared:
    value = stored_declaration(files) or {}
    parts = [value.get(name) for name in ("latent", "model")]
    found: dict[str, Any] = {}
    for part in parts:
        found |= part if isinstance(part, dict) else {}
    names = Declared.__dataclass_fields__
    return Declared(**{name: given for name, given in found.items() if name in names})
