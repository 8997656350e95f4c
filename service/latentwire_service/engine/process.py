"""What a process that runs the engine on a CPU sets once: how threads wait, what malloc keeps.

Imports nothing heavy: the first half has to be in the environment before torch is loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

# Times that a thread looks for work at the end of a parallel region before it sleeps; a decode step
# of a small model has some 900 regions. On two cores, for 64 slots of SmolLM2-135M: 90 ms a step
# when threads sleep at once, 54 ms with 2000, 51 ms with 3000. But where something else wants one
# of the cores, a thread that looks takes the other from the thread it waits for: then 88, 169 and
# 197 ms, and 355 ms with 10,000. libgomp's own number is 300,000.
_SPIN_COUNT = 2000

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that glibc takes: what is larger is mapped and unmapped each time.
_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 512 * 2**20


def thread_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add before torch is imported; nothing that the operator decided."""
    if "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ:
        return {}
    return {"GOMP_SPINCOUNT": str(_SPIN_COUNT)}


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one (glibc; elsewhere nothing changes).

    Logits of 64 slots take 12 MB in float32. Given back and asked for again in every step, their
    pages alone cost 13 ms of an 80 ms step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
