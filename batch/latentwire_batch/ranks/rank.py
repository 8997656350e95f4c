"""One process among several that make one dataset together, as `torchrun` starts them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from latentwire_batch.errors import UsageError

_LAUNCH_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
)
_LAUNCH_DIGITS = 16


@dataclass(frozen=True)
class Rank:
    """Which part of the rows is this process's.

    Attributes:
        index: `0..count-1`; 0 puts the dataset together.
        count: processes of the run.
        local_index: position among the processes on this machine.
        local_count: processes on this machine.
        launch: the same for all processes of one launch, and for no other launch.

    Rows are dealt out in turn: row i is for the rank whose index is i modulo count.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    launch: str = ""


ALONE = Rank()


def rank_of(environ: Mapping[str, str], parent_pid: int) -> Rank:
    """Take the rank from WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE.

    Args:
        environ: of this process; without WORLD_SIZE it is alone.
        parent_pid: of the launcher, which the ranks of one machine have in common.

    Raises:
        UsageError: when the variables contradict each other.
    """
    count = _number(environ, "WORLD_SIZE", 1)
    if count <= 1:
        return ALONE
    index = _number(environ, "RANK", None)
    local_index = _number(environ, "LOCAL_RANK", index)
    local_count = _number(environ, "LOCAL_WORLD_SIZE", count)
    if index >= count or local_index >= local_count:
        raise UsageError("RANK and LOCAL_RANK have to be less than their WORLD_SIZE")
    marks = [environ.get(name, "") for name in _LAUNCH_VARIABLES]
    if local_count == count:
        # On one machine this alone is certain: launchers reuse ports and run ids.
        marks.append(str(parent_pid))
    launch = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:_LAUNCH_DIGITS]
    return Rank(index, count, local_index, local_count, launch)


def _number(environ: Mapping[str, str], name: str, default: int | None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}: has to be a whole number when WORLD_SIZE is set")
    return int(text)
