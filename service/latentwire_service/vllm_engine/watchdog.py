"""A process that ends vLLM's processes after the service, however the service ended.

A process of vLLM's that starts waits for the service for minutes, and one that loads the model may
never learn that the service is gone. `row_worker` watches the service only once it runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping

import psutil

from latentwire_service.vllm_engine.environment import SERVICE_TOKEN

# A process that has just been forked does not have its environment yet.
_NUM_EMPTY_ROUNDS = 5
_ROUND_S = 0.2
# It removes the shared memory that the others leave behind, and ends after them.
_RESOURCE_TRACKER = "multiprocessing.resource_tracker"
# Each acts when its standard input closes, which happens when this process ends.
_started: list[subprocess.Popen[bytes]] = []


def start_watchdog(environ: Mapping[str, str]) -> None:
    """Start the process. It ends shortly after this one.

    Args:
        environ: of this service, with `SERVICE_TOKEN`, which vLLM's processes inherit.
    """
    hidden = {name: value for name, value in environ.items() if name != SERVICE_TOKEN}
    watchdog = subprocess.Popen(
        [sys.executable, "-m", __name__, environ[SERVICE_TOKEN]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=hidden,
        # Ctrl-C in a terminal is for the service.
        start_new_session=True,
    )
    _started.append(watchdog)


def end_processes(token: str) -> None:
    """Kill the processes that have inherited a token, until there are none."""
    num_empty = 0
    while num_empty < _NUM_EMPTY_ROUNDS:
        found = [process for process in psutil.process_iter() if _has(process, token)]
        for process in found:
            _kill(process)
        num_empty = 0 if found else num_empty + 1
        time.sleep(_ROUND_S)


def _has(process: psutil.Process, token: str) -> bool:
    try:
        if process.environ().get(SERVICE_TOKEN) != token:
            return False
        return not any(_RESOURCE_TRACKER in part for part in process.cmdline())
    # Another user's process, or one that has ended.
    except (psutil.Error, OSError):
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except (psutil.Error, OSError):
        return


def main() -> None:
    """Wait for the end of the service."""
    while os.read(0, 1):
        pass
    end_processes(sys.argv[1])


if __name__ == "__main__":
    main()
