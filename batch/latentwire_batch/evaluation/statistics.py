"""Paired statistics: means with bootstrap intervals, wins and losses with a sign test. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

_NUM_RESAMPLES = 2000
_COVERED = 0.95
# Values gathered at a time while resampling.
_MAX_GATHERED = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """A message against the matched latent, over the same tasks.

    Attributes:
        difference: mean of the message's value less that of the matched latent.
        interval: of the difference, 95 %.
        wins: tasks on which the matched latent is better.
        losses: tasks on which it is worse.
        ties: tasks on which both are equal.
        p: two-sided p value of the sign test.
    """

    difference: float
    interval: Interval
    wins: int
    losses: int
    ties: int
    p: float


@dataclass(frozen=True)
class Summary:
    """One message over all tasks.

    Attributes:
        mean: over the tasks.
        interval: of the mean, 95 %.
        comparison: with the matched latent; None for the matched latent itself.
    """

    mean: float
    interval: Interval
    comparison: Comparison | None


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p value of the exact binomial test; ties are left out.

    Args:
        wins: of one side.
        losses: of that side.
    """
    num = wins + losses
    # Whole numbers of any size: floats would overflow above 1,023 tasks. Each from the one before:
    # from the start, those of many tasks take minutes.
    tail = ways = 1
    for count in range(min(wins, losses)):
        ways = ways * (num - count) // (count + 1)
        tail += ways
    probability: float = 2 * tail / 2**num
    return min(1.0, probability)


def bootstrap(values: Floats, seed: int) -> Floats:
    """Return 95 % intervals of the means by resampling the tasks, all columns together.

    Args:
        values: `[tasks, columns]`.
        seed: of the resampling.

    Returns:
        `[columns, 2]`: lower and upper end.
    """
    rng = np.random.default_rng(seed)
    num_tasks, num_columns = values.shape
    means = np.empty((_NUM_RESAMPLES, num_columns))
    size = max(1, _MAX_GATHERED // max(1, values.size))
    for start in range(0, _NUM_RESAMPLES, size):
        count = min(size, _NUM_RESAMPLES - start)
        drawn = rng.integers(0, num_tasks, size=(count, num_tasks))
        means[start : start + count] = values[drawn].mean(axis=1)
    tail = (1 - _COVERED) / 2
    ends: Floats = np.quantile(means, (tail, 1 - tail), axis=0).T
    return ends


def summarize(
    values: Mapping[str, Sequence[float]], reference: str, seed: int, *, is_loss: bool
) -> dict[str, Summary]:
    """Summarize each message and compare it with one of them.

    Args:
        values: of each message, by task in the same order; at least one task.
        reference: name of the message to compare with.
        seed: of the intervals.
        is_loss: whether smaller values are better.
    """
    names = list(values)
    table = np.array([values[name] for name in names], dtype=np.float64).T
    base = table[:, names.index(reference)]
    differences = table - base[:, None]
    ends = bootstrap(np.concatenate([table, differences], axis=1), seed)
    found = {}
    for column, name in enumerate(names):
        comparison = None
        if name != reference:
            better = differences[:, column] * (1 if is_loss else -1)
            wins, losses = int((better > 0).sum()), int((better < 0).sum())
            comparison = Comparison(
                difference=float(differences[:, column].mean()),
                interval=_interval(ends[len(names) + column]),
                wins=wins,
                losses=losses,
                ties=len(table) - wins - losses,
                p=sign_test(wins, losses),
            )
        found[name] = Summary(float(table[:, column].mean()), _interval(ends[column]), comparison)
    return found


def _interval(ends: Floats) -> Interval:
    return float(ends[0]), float(ends[1])
