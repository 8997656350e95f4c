"""Runs commands of `latentwire` in one process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Runs each command line of the first argument; a start of Python takes most of the time.
RUN_ALL = """
import json, sys
from latentwire.cli import main
for args in json.loads(sys.argv[1]):
    sys.argv = ["latentwire", *args]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{args} ended with {ended.code}")
"""


def run_latentwire(commands: list[list[str]], folder: Path) -> str:
    """Run commands in one process, and return what they print."""
    return subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
