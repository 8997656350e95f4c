"""A service that ends while vLLM starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.engine import vllm_models
from support.engine.vllm_processes import command_of, runs

pytestmark = [pytest.mark.vllm, vllm_models.NEEDS_VLLM, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_ends_during_the_start_takes_vllms_processes_along(
    tmp_path: Path, ending: signal.Signals
) -> None:
    import psutil

    model = vllm_models.save("llama", tmp_path / "tiny")
    flags = ["--port", "0", "--max-slots", "2", "--max-model-len", "128"]
    for argument in vllm_models.ENGINE_ARGS:
        flags += ["--engine-arg", argument]
    service = subprocess.Popen(
        [sys.executable, "-m", "latentwire_service", "--engine", "vllm", "--model", str(model)]
        + flags,
        stderr=subprocess.DEVNULL,
    )
    try:
        children: list[psutil.Process] = []
        while not any("spawn_main" in command_of(child) for child in children):
            assert service.poll() is None
            time.sleep(0.05)
            children = psutil.Process(service.pid).children(recursive=True)
        service.send_signal(ending)
        service.wait(600)
        give_up_at = time.monotonic() + 60
        while any(runs(each) for each in children):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
    finally:
        service.kill()
        service.wait()
