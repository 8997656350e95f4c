"""What a process that runs the engine on a CPU sets once: threads, malloc, garbage collection.

Imports nothing heavy: the first half has to be in the environment before torch is loaded.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# Times that a thread looks for work at the end of a parallel region before it sleeps; a decode step
# of a small model has some 900 regions. On two cores, for 64 slots of SmolLM2-135M: 90 ms a step
# when threads sleep at once, 54 ms with 2000, 51 ms with 3000. But where something else wants one
# of the cores, a thread that looks takes the other from the thread it waits for: then 88, 169 and
# 197 ms, and 355 ms with 10,000. libgomp's own number is 300,000.
_SPIN_COUNT = 2000
# The same for LLVM's and Intel's OpenMP, which other builds of torch use: milliseconds, not 200.
_BLOCK_TIME_MS = 1
# A third of the time of a thread of niceness 0, where both want a core.
_NICENESS = 5

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The most that glibc takes: what is larger is mapped and unmapped each time.
_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 512 * 2**20


def thread_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add before torch is imported; nothing that the operator decided."""
    own = {"GOMP_SPINCOUNT": str(_SPIN_COUNT), "KMP_BLOCKTIME": str(_BLOCK_TIME_MS)}
    if "OMP_WAIT_POLICY" in environ:
        return {}
    return {name: value for name, value in own.items() if name not in environ}


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one (glibc; elsewhere nothing changes).

    To be called before there are other threads: they share one arena then, as those of their own
    hold 64 MB and are given back whatever is set here.

    Logits of 64 slots take 12 MB in float32. Given back and asked for again in every step, their
    pages alone cost 13 ms of an 80 ms step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def give_way() -> None:
    """Let the process's other threads run first, where this one and its team leave no core free.

    To be called on the engine's thread before it computes: OpenMP's threads inherit it (Linux;
    elsewhere nothing changes). On two cores, both decoding, the reader of a stream got its first
    event 1 ms earlier. Where the operator chose a niceness, it stays.
    """
    # Elsewhere niceness is the whole process's.
    if sys.platform == "linux":
        thread_id = threading.get_native_id()
        # What is forbidden in a container is no reason not to serve.
        with suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, thread_id) == 0:
                os.setpriority(os.PRIO_PROCESS, thread_id, _NICENESS)


def settle_heap() -> None:
    """Take what is loaded by now out of garbage collection: it stays to the end.

    torch, transformers and a model are 400,000 objects; each full collection stood still for 180 ms
    to look through them.
    """
    gc.collect()
    gc.freeze()


def cpu_name() -> str:
    """Return a name for what this CPU can do: code compiled for one need not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    identity = f"{platform.machine()} {platform.processor()} {features}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]
