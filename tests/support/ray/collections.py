"""Runs collections in one process: `python -m support.ray.collections`.

Each line of the standard input is a JSON list of arguments; a line with the exit status answers.
"""

from __future__ import annotations

import json
import sys
from unittest.mock import patch

from latentwire_batch.__main__ import main

# A run that was killed is gone after so long without a sign, instead of a minute.
_STALE_S = 3.0
# Ray writes lines of its own to the standard output.
ANSWER = "status "

if __name__ == "__main__":
    with patch("latentwire_batch.output.owner._STALE_S", _STALE_S):
        for line in sys.stdin:
            sys.stdout.write(f"{ANSWER}{int(main(json.loads(line)))}\n")
            sys.stdout.flush()
