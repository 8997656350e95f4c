"""A minute at twice the capacity: callers hang up, read slowly and send invalid requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire import Client
from support.child import Child
from support.tiny_models import llama_config, save_model

ROOT = Path(__file__).parents[2]
SECONDS = 60


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_a_minute_of_overload_gives_no_wrong_answer_holds_no_slot_and_keeps_memory_flat(
    tmp_path: Path,
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(eos_token_id=None))
    flags = ["--max-slots", "8", "--max-queue", "8", "--max-body-bytes", "65536"]
    child = Child("--model", str(folder), "--port", "0", "--threads", "1", *flags)
    try:
        with Client(child.url) as client:
            client.wait_ready()
        pid = str(child.process.pid)
        command = ["--url", child.url, "--seconds", str(SECONDS), "--pid", pid]
        soak = subprocess.run(
            [sys.executable, "-m", "benchmarks.service_soak", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert soak.returncode == 0, soak.stdout + soak.stderr
        outcomes = json.loads(soak.stdout.splitlines()[-1])["outcomes"]
        # Each kind of overload happened.
        assert {"right", "left", "refused", "queue-full"} == outcomes.keys()
        child.signal()
        assert child.wait() == 0, child.output
    finally:
        child.close()
