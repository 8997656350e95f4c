"""The whole service as a program, over the backend without a model.

It starts several times as fast as with a model, because it imports neither torch nor transformers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from latentwire_service.__main__ import main
from latentwire_service.engine.backend import BackendFactory
from latentwire_service.settings import Settings
from support.fake_backend import FakeBackend

# Arguments of Python that run it. As a file it would find the tests' `requests` before the library.
COMMAND = (
    "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from support.processes.fake_service import run; sys.exit(run(sys.argv[1:]))",
)
# A step takes some time, as with a model: requests run next to each other.
STEP_S = 0.005


def _factory(settings: Settings) -> BackendFactory:
    return partial(FakeBackend, settings, before_decode=partial(time.sleep, STEP_S))


def run(args: Sequence[str]) -> int:
    """Run `latentwire serve` over the fake backend."""
    with patch("latentwire_service.server.backend_factory", _factory):
        return main(list(args))
