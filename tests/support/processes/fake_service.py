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

# A step takes some time, as with a model: requests run next to each other.
STEP_S = 0.005


def command(step_s: float) -> tuple[str, ...]:
    """Arguments of Python that run it with steps that take so long."""
    # As a file it would find the tests' `requests` before the library.
    return (
        "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
        f"from support.processes.fake_service import run; sys.exit(run(sys.argv[1:], {step_s!r}))",
    )


COMMAND = command(STEP_S)


def _factory(settings: Settings, step_s: float) -> BackendFactory:
    return partial(FakeBackend, settings, before_decode=partial(time.sleep, step_s))


def run(args: Sequence[str], step_s: float = STEP_S) -> int:
    """Run `latentwire serve` over the fake backend."""
    factory = partial(_factory, step_s=step_s)
    with patch("latentwire_service.server.backend_factory", factory):
        return main(list(args))
