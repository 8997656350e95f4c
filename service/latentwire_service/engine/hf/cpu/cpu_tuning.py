"""Settings of a process that runs the engine on a CPU: threads, malloc, garbage collection.

This module does not import torch, because the variables of `thread_environment` must be set first.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

# How often a thread checks for work at the end of a parallel region before it sleeps. A decode step
# of a small model has some 900 regions. On two idle cores, a step of 64 slots of SmolLM2-135M takes
# 90 ms if threads sleep at once, 54 ms with 2000 checks and 51 ms with 3000. If another program
# uses one of the cores, a spinning thread takes the other core from the thread that it waits for:
# the step then takes 88, 169 and 197 ms, and 355 ms with 10,000. libgomp's default is 300,000.
_SPIN_COUNT = 2000
# The same for the OpenMP of LLVM and Intel, which other builds of torch use. Their default is 200.
_BLOCK_TIME_MS = 1
# On a contended core, such a thread gets a third of the time of a thread of niceness 0.
_NICENESS = 5

# CPUs, ranges and strides, as in "0 2-5 8-14:2".
_CPUS = r"[\s,]*(\d+(-\d+(:\d+)?)?([\s,]+|$))*"

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The maximum of glibc, which maps and unmaps every larger block.
_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 512 * 2**20


def thread_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set before torch is imported, without those that the operator set."""
    own = {"GOMP_SPINCOUNT": str(_SPIN_COUNT), "KMP_BLOCKTIME": str(_BLOCK_TIME_MS)}
    if "OMP_WAIT_POLICY" in environ:
        return {}
    return {name: value for name, value in own.items() if name not in environ}


def drop_unreadable(environ: MutableMapping[str, str]) -> list[str]:
    """Remove variables that stop the process when torch is imported; return their names.

    libgomp reads a list of CPUs without an end if it finds another character in it.
    """
    name = "GOMP_CPU_AFFINITY"
    if re.fullmatch(_CPUS, environ.get(name, "")):
        return []
    del environ[name]
    return [name]


def keep_freed_memory() -> None:
    """Make malloc keep the memory that a step frees for the next step (glibc only).

    Call it before other threads start, because it makes all threads share one arena. Arenas of
    other threads would hold 64 MB each and return memory regardless of these settings.

    The logits of 64 slots take 12 MB in float32. Returning and requesting their pages in every step
    takes 13 ms of an 80 ms step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def give_way() -> None:
    """Lower the priority of the calling thread below that of the process's other threads (Linux).

    Call it on the engine's thread before it computes, so that the threads of OpenMP inherit the
    priority. On two cores that both decode, a client got the first event of a stream 1 ms earlier.
    A niceness that the operator set stays.
    """
    # On other systems, niceness belongs to the whole process.
    if sys.platform == "linux":
        thread_id = threading.get_native_id()
        # A container may forbid it, and the engine works without it.
        with suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, thread_id) == 0:
                os.setpriority(os.PRIO_PROCESS, thread_id, _NICENESS)


def settle_heap() -> None:
    """Exclude all current objects from garbage collection, because they live until the end.

    torch, transformers and a model are 400,000 objects, and each full collection paused the process
    for 180 ms to traverse them.
    """
    gc.collect()
    gc.freeze()


def cpu_name() -> str:
    """Return a name for this CPU's features, because code compiled for others may not run on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    identity = f"{platform.machine()} {platform.processor()} {features}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]
