"""Processes that a service leaves behind end after it. Plain processes stand for vLLM's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from latentwire_service.vllm_engine.environment import SERVICE_TOKEN, prepare_environment

pytest.importorskip("psutil")

_SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
_SERVICE = """
import os, subprocess, sys
from latentwire_service.vllm_engine.environment import prepare_environment
from latentwire_service.vllm_engine.watchdog import start_watchdog

prepare_environment(os.environ, "info")
start_watchdog(os.environ)
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
sys.stdin.read()
"""
# Tells that it runs, then sleeps; named like vLLM's processes where vLLM is installed.
_CHILD = """
import contextlib, time
with contextlib.suppress(ImportError):
    from setproctitle import setproctitle

    setproctitle("VLLM::EngineCore")
print("runs", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another service."""
    environ: dict[str, str] = dict(os.environ)
    prepare_environment(environ, "info")
    process = subprocess.Popen(_SLEEPER, env=environ)
    yield process
    process.kill()
    process.wait()


def _service(environ: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SERVICE, _CHILD],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("is_killed", [True, False])
def test_children_end_after_the_service_however_it_ends(
    is_killed: bool, stranger: subprocess.Popen[bytes]
) -> None:
    with _service(os.environ) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        assert service.stdout.readline() == "runs\n"
        if is_killed:
            service.send_signal(signal.SIGKILL)
        else:
            service.stdin.close()
        # Ends once the child, which has inherited the pipe, is gone.
        assert service.stdout.read() == ""
    assert stranger.poll() is None


def test_each_service_has_a_token_of_its_own() -> None:
    tokens = []
    for _ in range(2):
        environ: dict[str, str] = {}
        prepare_environment(environ, "info")
        tokens.append(environ[SERVICE_TOKEN])
    assert len(set(tokens)) == 2
