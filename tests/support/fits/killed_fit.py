"""A fit in a process of its own, which is killed when it has saved its state a few times."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, signal
from latentwire.cli import main
from latentwire_service.fitting.checkpoint import Checkpoint

save, num_saved = Checkpoint.save, 0

def save_and_end(*args):
    global num_saved
    save(*args)
    num_saved += 1
    if num_saved == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = save_and_end
main()
"""


def killed_fit(output: Path, *command: str) -> Path:
    """Run a command of `latentwire` that fits into `output`; return the path of the state left."""
    process = subprocess.run([sys.executable, "-c", _PROGRAM, *command], check=False)
    assert process.returncode == -signal.SIGKILL
    state = output / ".fit.safetensors"
    assert state.exists()
    return state
