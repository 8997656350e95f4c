"""Which tasks of a dataset are scored: never those that a bridge or a compressor was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.bridge_manifest import HeldOut
from latentwire_batch.console import Notify
from latentwire_batch.errors import UsageError
from latentwire_batch.evaluation.samples import HeldOutSplit


@dataclass(frozen=True, slots=True)
class Fitted:
    """Something that was fitted to tasks.

    Attributes:
        flag: that names it.
        name: in words, for example "the bridge".
        held_out: the tasks that it was not fitted to; None: it does not say.
    """

    flag: str
    name: str
    held_out: HeldOut | None


def choose_split(
    fitted: Sequence[Fitted], fraction: float | None, seed: int, say: Notify, subject: str
) -> HeldOutSplit:
    """Decide which tasks are scored: those that everything that was fitted held out.

    Args:
        fitted: all that was fitted.
        fraction: of `--held-out`.
        seed: for a fraction of something that does not say which tasks it was fitted to.
        say: receives a notice about something that does not say it.
        subject: what is evaluated, in words, if nothing was fitted.

    Raises:
        UsageError: `--held-out` takes in tasks that something was fitted to.
    """
    if fraction is not None and fraction >= 1:
        return HeldOutSplit(0, 1.0, "all of the dataset, as --held-out says")
    rules = {each.name: _rule(each.name, each.held_out, fraction) for each in _stated(fitted)}
    silent = [each for each in fitted if each.held_out is None]
    if rules:
        for each in silent:
            say(
                f"{each.flag}: {each.name} does not say which tasks it was fitted to; some of them "
                "may be scored"
            )
        return _common(rules)
    if fraction is not None:
        return HeldOutSplit(seed, fraction, f"held out: fraction {fraction:g}, seed {seed}")
    if not silent:
        return HeldOutSplit(0, 1.0, f"all of the dataset; {subject} not fitted")
    names = " and ".join(each.name for each in silent)
    for each in silent:
        about = "" if each.flag == "--bridge" else f"{each.name} "
        say(
            f"{each.flag}: {about}does not say which tasks it was fitted to, so all tasks are "
            "scored; --held-out and --seed choose those that were held out"
        )
    return HeldOutSplit(0, 1.0, f"all of the dataset; {names} may have been fitted to some")


def _stated(fitted: Sequence[Fitted]) -> list[Fitted]:
    return [each for each in fitted if each.held_out is not None]


def _rule(name: str, held_out: HeldOut | None, fraction: float | None) -> tuple[int, float]:
    assert held_out is not None
    if fraction is not None and fraction > held_out.fraction:
        raise UsageError(
            f"--held-out: {fraction:g} takes in tasks that {name} was fitted to, which held out "
            f"{held_out.fraction:g}; 1 scores all tasks of another dataset"
        )
    return held_out.seed, held_out.fraction if fraction is None else fraction


def _common(rules: dict[str, tuple[int, float]]) -> HeldOutSplit:
    (seed, fraction), *further = dict.fromkeys(rules.values())
    if not further:
        verb = "was" if len(rules) == 1 else "were"
        names = " and ".join(rules)
        meaning = f"held out when {names} {verb} fitted: fraction {fraction:g}, seed {seed}"
        return HeldOutSplit(seed, fraction, meaning)
    each = [f"{name} ({rule[1]:g}, seed {rule[0]})" for name, rule in rules.items()]
    meaning = f"held out by each of: {', '.join(each)}"
    return HeldOutSplit(seed, fraction, meaning, tuple(further))
