"""Runs collections in one process: `python -m support.ray.collections`.

Each line of the standard input is a JSON list of arguments; a line with the exit status answers.
"""

from __future__ import annotations

import json
import sys

from latentwire_batch.__main__ import main

if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"status {int(main(json.loads(line)))}\n")
        sys.stdout.flush()
