"""Settings of the process: what the operator decided stays."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping

import pytest

from latentwire_service.engine.process import thread_environment

# Page faults of 20 steps after a few others, each with a few tensors like the logits of 64 slots.
COUNT_FAULTS = """
import resource, sys, threading, torch
from latentwire_service.engine.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    for count in (1, 4, 2):
        kept = [torch.full((64, 49152), 1.0) for _ in range(count)]
        del kept
def steps():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[2] == "main":
    steps()
else:
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
"""


def count_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_threads_look_for_work_before_they_sleep() -> None:
    assert int(thread_environment({})["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize(
    ("environ", "left"),
    [
        ({"OMP_WAIT_POLICY": "passive"}, set()),
        ({"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME"}),
        ({"KMP_BLOCKTIME": "7"}, {"GOMP_SPINCOUNT"}),
    ],
)
def test_the_operators_own_choice_stays(environ: Mapping[str, str], left: set[str]) -> None:
    assert thread_environment(environ).keys() == left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_step_reuses_the_memory_of_the_one_before() -> None:
    pages_of_a_tensor = 64 * 49152 * 4 // resource.getpagesize()
    assert count_faults("keep", "main") < pages_of_a_tensor / 10
    # As the engine: on a thread of its own.
    assert count_faults("keep", "thread") < pages_of_a_tensor / 10
    assert count_faults("usual", "main") > pages_of_a_tensor
