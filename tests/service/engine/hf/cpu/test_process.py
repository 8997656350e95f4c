"""Process settings: those of the operator take precedence."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from latentwire_service.engine.hf.cpu.cpu_tuning import (
    drop_unreadable,
    give_way,
    thread_environment,
)

# Prints how many blocks glibc's malloc maps for 16 MiB on a thread, and how many bytes it keeps
# when they are freed. In <malloc.h>, hblks is the fourth number of mallinfo2, keepcost the tenth.
ALLOCATE = """
import ctypes, sys, threading
from latentwire_service.engine.hf.cpu.cpu_tuning import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
class Info(ctypes.Structure):
    _fields_ = [("numbers", ctypes.c_size_t * 10)]
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
def allocate():
    before = libc.mallinfo2().numbers[3]
    pointer = libc.malloc(16 * 2**20)
    num_mapped = libc.mallinfo2().numbers[3] - before
    libc.free(ctypes.c_void_p(pointer))
    print(num_mapped, libc.mallinfo2().numbers[9])
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""

# Prints whether a full collection traverses an earlier object, and whether it frees later garbage.
COLLECT = """
import gc, sys, weakref
from latentwire_service.engine.hf.cpu.cpu_tuning import settle_heap
class Node:
    pass
early = Node()
if sys.argv[1] == "settle":
    settle_heap()
late = Node()
late.itself = late
garbage = weakref.ref(late)
del late
gc.collect()
print(any(known is early for known in gc.get_objects()), garbage() is None)
"""


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def allocated(argument: str) -> tuple[int, int]:
    command = [sys.executable, "-c", ALLOCATE, argument]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    num_mapped, num_kept_bytes = map(int, output.split())
    return num_mapped, num_kept_bytes


def test_threads_spin_before_they_sleep() -> None:
    assert int(thread_environment({})["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize(
    ("environ", "left"),
    [
        ({"OMP_WAIT_POLICY": "passive"}, set()),
        ({"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME"}),
        ({"KMP_BLOCKTIME": "7"}, {"GOMP_SPINCOUNT"}),
    ],
)
def test_the_operators_own_settings_stay(environ: Mapping[str, str], left: set[str]) -> None:
    assert thread_environment(environ).keys() == left


@pytest.mark.parametrize("cpus", ["", "0", "0 1", "0-3,8", " 2-14:2, 1 ", "0,,1"])
def test_a_list_of_cpus_stays(cpus: str) -> None:
    environ = {"GOMP_CPU_AFFINITY": cpus}
    assert drop_unreadable(environ) == []
    assert environ == {"GOMP_CPU_AFFINITY": cpus}
    assert drop_unreadable({}) == []


@pytest.mark.parametrize("cpus", ["junk", "0 x", "0;1", "0-x", "0:x", "$CPUS", "0-1 2-"])
def test_a_list_of_cpus_that_libgomp_would_read_without_end_is_dropped(cpus: str) -> None:
    environ = {"GOMP_CPU_AFFINITY": cpus, "OMP_NUM_THREADS": "junk"}
    assert drop_unreadable(environ) == ["GOMP_CPU_AFFINITY"]
    assert environ == {"OMP_NUM_THREADS": "junk"}


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's malloc, 2.33 or newer"
)
def test_a_step_reuses_the_memory_of_the_previous_step() -> None:
    num_mapped, num_kept_bytes = allocated("keep")
    assert num_mapped == 0
    assert num_kept_bytes >= 16 * 2**20
    # By default, malloc maps them, and frees them.
    num_mapped, num_kept_bytes = allocated("usual")
    assert num_mapped == 1
    assert num_kept_bytes < 16 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux")
def test_the_engines_thread_and_those_it_starts_have_a_lower_priority() -> None:
    before = niceness()
    expected = before or 5
    with ThreadPoolExecutor(1, initializer=give_way) as engine:
        assert engine.submit(niceness).result() == expected
        # A niceness that the operator chose stays.
        engine.submit(os.nice, 10).result()
        engine.submit(give_way).result()
        assert engine.submit(niceness).result() == min(expected + 10, 19)

        def of_a_thread_that_it_starts() -> int:
            with ThreadPoolExecutor(1) as team:
                return team.submit(niceness).result()

        assert engine.submit(of_a_thread_that_it_starts).result() == min(expected + 10, 19)
    assert niceness() == before


@pytest.mark.parametrize(("argument", "is_looked_at"), [("settle", False), ("usual", True)])
def test_settled_objects_are_not_collected_again(argument: str, is_looked_at: bool) -> None:
    command = [sys.executable, "-c", COLLECT, argument]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(is_looked_at), "True"]
