"""Services that end by themselves, as copies of one process: imports take most of a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

# A line with the exit status follows what a service wrote.
_SERVE_EACH = """
import json, os, sys
import latentwire_service.local_backend, latentwire_service.server
from latentwire_service.__main__ import main
for args in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        sys.exit(main(args))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stderr.write(f"ended with {status}\\n")
    sys.stderr.flush()
"""
_TIMEOUT_S = 180


def serve_each(command_lines: Sequence[Sequence[str]]) -> list[str]:
    """Run `latentwire serve` with each list of arguments, up to status 2; return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", _SERVE_EACH, json.dumps(command_lines)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )
    *outputs, rest = done.stderr.split("ended with 2\n")
    assert (len(outputs), rest) == (len(command_lines), ""), done.stderr
    return outputs
