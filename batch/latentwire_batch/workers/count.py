"""How many processes receive the rows of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from latentwire_batch.errors import UsageError

# One core receives and logs 500 MB/s, which is what eleven GPUs with a 7B model make, and a third
# of that through TLS, which httpx reads. Compressors run on threads of their own.
_REPLICAS_PER_WORKER = 8
_WEIGHT_OF_TLS = 3
# Assembly, compressors and the system take the others.
_CORES_PER_WORKER = 4
# More only compete for the cores, and each takes the memory of a whole Python process.
_MAX_PER_CORE = 4
_MIN_LIMIT = 16


def num_workers(wanted: Literal["auto"] | int, addresses: Sequence[str], num_cores: int) -> int:
    """Return the number of processes.

    Args:
        wanted: the setting.
        addresses: of the replicas, as the user gave them; none for own replicas.
        num_cores: that this process may use.

    Raises:
        UsageError: when there are to be several and no address is given, or so many that they
            take the machine's memory and no work is done.
    """
    if wanted == "auto":
        num_tls = sum(address.lower().startswith("https://") for address in addresses)
        load = len(addresses) + (_WEIGHT_OF_TLS - 1) * num_tls
        return max(1, min(load // _REPLICAS_PER_WORKER, num_cores // _CORES_PER_WORKER))
    if wanted > 1 and not addresses:
        raise UsageError("--workers: more than one needs --replica")
    most = max(_MIN_LIMIT, _MAX_PER_CORE * num_cores)
    if wanted > most:
        raise UsageError(f"--workers: must be at most {most} on this machine, got {wanted}")
    return wanted


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
