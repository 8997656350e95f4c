"""Which shard a run collects: from `--shard`, or from the variables of an array of jobs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from latentwire_batch.errors import UsageError
from latentwire_batch.shards.shard import MAX_SHARDS, Shard

_SLURM_ID, _SLURM_COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
_SLURM_MIN, _SLURM_MAX = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"
_SLURM_STEP = "SLURM_ARRAY_TASK_STEP"
_KUBERNETES_ID = "JOB_COMPLETION_INDEX"
_FORM = re.compile(r"([0-9]{1,9})?/([0-9]{1,9})")
_NONE = "none"
_TURN_OFF = "--shard none collects all rows"


@dataclass(frozen=True)
class ShardChoice:
    """What a run collects.

    Attributes:
        shard: its shard; None: all rows.
        notice: the first line of the run, which says why; None without flag and variables.
    """

    shard: Shard | None = None
    notice: str | None = None


def choose_shard(
    given: str | None, environ: Mapping[str, str], origin: str = "--shard"
) -> ShardChoice:
    """Choose the shard of a run.

    Args:
        given: the setting `shard`; None when it is absent.
        environ: of this process.
        origin: the flag or variable that gave the setting, for the notice.

    Raises:
        UsageError: when the setting or a variable cannot be used.
    """
    if given is None:
        return _default(environ)
    if given.strip().lower() == _NONE:
        return ShardChoice(None, f"all rows, not a shard: {origin} is none")
    match = _FORM.fullmatch(given.strip())
    if match is None:
        raise UsageError(
            "--shard: must be like 3/16, which is the fourth of the shards 0 to 15; /16, which "
            f"takes the number from {_SLURM_ID} or {_KUBERNETES_ID}; or none"
        )
    count = int(match[2])
    if not 1 <= count <= MAX_SHARDS:
        raise UsageError(f"--shard: the number of shards must be 1 to {MAX_SHARDS}, not {count}")
    if match[1] is None:
        return _of_task(count, environ, origin)
    index = int(match[1])
    if index >= count:
        raise UsageError(
            f"--shard: there is no shard {index}/{count}: shards are numbered from 0, so the last "
            f"of {count} is {count - 1}/{count}"
        )
    shard = Shard(index, count)
    return ShardChoice(shard, f"shard {shard}: given by {origin}")


def _of_task(count: int, environ: Mapping[str, str], origin: str) -> ShardChoice:
    """Take the number of the shard from the task's, as it is."""
    set_ones = [name for name in (_SLURM_ID, _KUBERNETES_ID) if environ.get(name)]
    if not set_ones:
        raise UsageError(
            f"--shard: /{count} takes the number of the shard from {_SLURM_ID} or "
            f"{_KUBERNETES_ID}, and neither is set; --shard 0/{count} names a shard"
        )
    numbers = {name: _number(environ, name) for name in set_ones}
    if len(set(numbers.values())) > 1:
        raise UsageError(
            f"--shard: {_SLURM_ID} and {_KUBERNETES_ID} differ; name the number as in 0/{count}"
        )
    name, index = next(iter(numbers.items()))
    # An array that begins at 1 would leave shard 0 out, and only its last task would notice.
    last = _number(environ, _SLURM_MAX) if name == _SLURM_ID and environ.get(_SLURM_MAX) else index
    if max(index, last) >= count:
        remedy = (
            f"submit with --array=0-{count - 1}"
            if name == _SLURM_ID
            else (f"set the Job's completions to {count}")
        )
        raise UsageError(
            f"{name}: goes up to {max(index, last)}, but --shard /{count} has the shards 0 to "
            f"{count - 1}; {remedy}"
        )
    shard = Shard(index, count)
    return ShardChoice(shard, f"shard {shard}: {name} is {index}, and {origin} is /{count}")


def _default(environ: Mapping[str, str]) -> ShardChoice:
    if environ.get(_SLURM_ID):
        return _of_slurm_array(environ)
    if environ.get(_KUBERNETES_ID):
        # Kubernetes does not say how many pods the Job has.
        return ShardChoice(
            None,
            f"all rows, although {_KUBERNETES_ID} is set: --shard /N makes this one of N shards",
        )
    return ShardChoice()


def _of_slurm_array(environ: Mapping[str, str]) -> ShardChoice:
    """Take one shard for each task of the array, in the order of their ids."""
    task = _number(environ, _SLURM_ID)
    if not environ.get(_SLURM_COUNT):
        raise UsageError(
            f"{_SLURM_ID}: is set without {_SLURM_COUNT}; --shard /N says how many shards there "
            f"are, and {_TURN_OFF}"
        )
    count = _number(environ, _SLURM_COUNT)
    first = _number(environ, _SLURM_MIN) if environ.get(_SLURM_MIN) else 0
    step = _number(environ, _SLURM_STEP) if environ.get(_SLURM_STEP) else 1
    last = _number(environ, _SLURM_MAX) if environ.get(_SLURM_MAX) else first + (count - 1) * step
    is_regular = step > 0 and last - first == (count - 1) * step and (task - first) % step == 0
    # --array=3,7 and --array=3-5 run some tasks of a larger array again, and do not say of which.
    if not is_regular or first > 1 or not first <= task <= last or not 1 <= count <= MAX_SHARDS:
        raise UsageError(
            f"{_SLURM_ID}: this array of {_tasks(count)} from {first} to {last} does not say how "
            f"many shards there are; --shard /N takes the id as the number of one of N shards, and "
            f"{_TURN_OFF}"
        )
    shard = Shard((task - first) // step, count)
    begins = "" if first == 0 else f" that begins at {first}"
    return ShardChoice(
        shard,
        f"shard {shard}: {_SLURM_ID} is {task}, in an array of {_tasks(count)}{begins}; "
        f"{_TURN_OFF}",
    )


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{name}: must be a whole number; {_TURN_OFF}")
    return int(text)
