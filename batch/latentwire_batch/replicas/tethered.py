"""Runs a module so that it ends with its starter: `-m latentwire_batch.replicas.tethered MODULE`.

The starter holds the other end of standard input. When it is gone, killed too, reading there ends.
Without this a replica would go on holding its GPU after its collector was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

# Nobody waits for what the module is doing, so it gets little time to end in good order.
_PATIENCE_S = 10.0


def main() -> None:
    """Run the module named by the first argument, with the arguments after it."""
    threading.Thread(target=_end_with_starter, name="tether", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    # Not sys.stdin: its lock, held by a thread that reads, would stop the interpreter's own end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
