"""Runs a module that ends with its parent: `-m latentwire_batch.replicas.tethered MODULE`.

The parent holds the other end of standard input, which closes when the parent ends, even by a kill.
Without this a replica would hold its GPU after its collector was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

# No caller waits for the module's results, so it gets little time to shut down.
_PATIENCE_S = 10.0


def main() -> None:
    """Run the module named by the first argument, with the arguments after it."""
    threading.Thread(target=_end_with_parent, name="tether", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    # Not sys.stdin: a thread that reads holds its lock, which would block the interpreter's exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
