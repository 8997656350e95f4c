"""Speed of latentwire next to its peers: same model, prompts and number of tokens, in one run."""

import importlib.util
import sys
from pathlib import Path

# `python -m benchmarks.gpu` runs in a checkout that is not installed, too.
if importlib.util.find_spec("latentwire_service") is None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "service"))
