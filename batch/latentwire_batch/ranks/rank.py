"""The rank of a process among several that make one dataset, as `torchrun` starts them. Pure."""

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
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
)
_LAUNCH_DIGITS = 16


@dataclass(frozen=True)
class Rank:
    """A process's part of the rows.

    Attributes:
        index: `0..count-1`; rank 0 puts the dataset together.
        count: processes of the run.
        local_index: position among the processes on this machine.
        local_count: processes on this machine.
        launch: identifies the launch that started the processes.
        is_worker: whether the processes divide the slots of each replica among them.

    Row i belongs to the rank whose index is i modulo count.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    launch: str = ""
    is_worker: bool = False

    @classmethod
    def of_worker(cls, index: int, count: int, launch: str) -> Rank:
        """Return the rank of a process that `collect` starts itself, or of its first process."""
        return cls(index, count, index, count, launch, is_worker=True)

    def slots_of(self, num_slots: int) -> int:
        """Return how many rows this process may have in flight at a replica, at least 1.

        Args:
            num_slots: that the replica has.
        """
        if not self.is_worker:
            return num_slots
        return max(1, num_slots // self.count + (self.index < num_slots % self.count))


ALONE = Rank()


def rank_of(environ: Mapping[str, str], parent_pid: int) -> Rank:
    """Read the rank from WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE.

    Args:
        environ: of this process; without WORLD_SIZE the process is alone.
        parent_pid: of the launcher, which is the same for the ranks of one machine.

    Raises:
        UsageError: when the variables contradict each other.
    """
    count = _number(environ, "WORLD_SIZE", 1)
    if count <= 1:
        return ALONE
    index = _number(environ, "RANK", None)
    local_index = _number(environ, "LOCAL_RANK", _number(environ, "SLURM_LOCALID", index))
    local_count = _number(environ, "LOCAL_WORLD_SIZE", count)
    if index >= count or local_index >= local_count:
        raise UsageError("RANK and LOCAL_RANK must be less than WORLD_SIZE and LOCAL_WORLD_SIZE")
    marks = [environ.get(name, "") for name in _LAUNCH_VARIABLES]
    is_one_machine = local_count == count and not _has_many_nodes(environ)
    if is_one_machine:
        # Launchers reuse ports and run ids. On one machine, only their process id is unique.
        marks.append(str(parent_pid))
    launch = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:_LAUNCH_DIGITS]
    return Rank(index, count, local_index, local_count, launch)


def _has_many_nodes(environ: Mapping[str, str]) -> bool:
    """Whether Slurm started the processes on several machines, each by another parent process."""
    return environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1")) != "1"


def _number(environ: Mapping[str, str], name: str, default: int | None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}: must be a whole number when WORLD_SIZE is set")
    return int(text)
