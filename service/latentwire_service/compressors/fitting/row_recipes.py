"""Kinds that code each row by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentwire.compressors.base import COMPRESSED, Compressor, Rows
from latentwire_service.compressors.fitting.moments import Moments, Principal
from latentwire_service.compressors.fitting.recipe import Facts, Fitted, Make, Scores, Work
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.samples import Sample

_SUMS = "sums"
# A fit that is killed loses no more than this.
_SAVE_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class PcaRecipe:
    """Coordinates along the directions in which rows vary most.

    Attributes:
        dim: number of directions.
        reduction: chooses the rows that are coded; None: all of them.
    """

    dim: int
    reduction: Compressor | None

    @property
    def facts(self) -> Facts:
        """As `Recipe.facts`."""
        return Facts(self.dim)

    def fit(self, work: Work) -> Fitted:
        """As `Recipe.fit`."""
        principal = principal_rows(work, self.reduction, self.dim)
        tensors = {"mean": principal.mean.float(), "components": principal.components.float()}
        return Fitted(tensors, {"rows": self.reduction and self.reduction.name})

    def scores(
        self,
        make: Make,  # noqa: ARG002
        samples: Sequence[Sample],  # noqa: ARG002
        progress: FitProgress,  # noqa: ARG002
    ) -> dict[str, Scores]:
        """As `Recipe.scores`: there are no others."""
        return {}


def reduced(reduction: Compressor | None, rows: Rows) -> Rows:
    """Return the rows of a latent that are coded."""
    return rows if reduction is None else reduction.compress(rows)[COMPRESSED]


def principal_rows(work: Work, reduction: Compressor | None, dim: int) -> Principal:
    """Return the main directions of all training rows, in one pass over the dataset.

    Args:
        work: of the fit.
        reduction: chooses the rows of a latent; None: all of them.
        dim: number of directions.

    Raises:
        BridgeError: the dataset has too few rows.
    """
    if dim > work.width:
        raise BridgeError(f"--dim: must be at most {work.width}, the width of the rows")
    moments, num_done = Moments(work.width, work.device), 0
    saved = work.checkpoint.load(torch.device("cpu"))
    if saved is not None and saved.phase == _SUMS:
        num_done, count = saved.numbers
        moments.restore(saved.tensors, count)
    total = work.split.dataset.num_rows
    work.progress.begin("reading", min(total, work.split.limit or total), num_done)
    saved_s = time.monotonic()
    for index, sample in enumerate(work.split.training()):
        if index < num_done:
            continue
        moments.add(torch.from_numpy(reduced(reduction, sample.rows)))
        work.progress.advance()
        if time.monotonic() - saved_s >= _SAVE_INTERVAL_S:
            work.checkpoint.save(moments.tensors(), [index + 1, moments.count], _SUMS)
            saved_s = time.monotonic()
    if moments.count <= dim:
        raise BridgeError(
            f"DATASET: {moments.count} rows for training are too few for --dim {dim}",
            "More plans, a smaller --dim or a larger --k help.",
        )
    return moments.principal(dim)
