"""How many processes receive the rows of a run."""

from __future__ import annotations

import os
from typing import Literal

from latentwire_batch.errors import UsageError

# One process logs the rows of some eleven GPUs with a 7B model.
_REPLICAS_PER_WORKER = 8
# Assembly, compressors and the system take the others.
_CORES_PER_WORKER = 4


def num_workers(wanted: Literal["auto"] | int, num_replicas: int, num_cores: int) -> int:
    """Return the number of processes.

    Args:
        wanted: the setting.
        num_replicas: addresses that the user gave; 0 for own replicas.
        num_cores: that this process may use.

    Raises:
        UsageError: when there are to be several, and no address is given.
    """
    if wanted == "auto":
        return max(1, min(num_replicas // _REPLICAS_PER_WORKER, num_cores // _CORES_PER_WORKER))
    if wanted > 1 and not num_replicas:
        raise UsageError("--workers: more than one needs --replica")
    return wanted


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
