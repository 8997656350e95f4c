"""The backend without a model, for the processes of a cluster: see `stand_in`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from latentwire_service.engine.backend import BackendFactory, BackendInfo
from latentwire_service.settings import Settings
from support.fake_backend import FakeBackend

NAME = "stand-in"
# While the model's folder has a file of this name, rows take time: enough to kill processes.
_SLOW = "slow"
_SLOW_STEP_S = 0.02

Make = Callable[[Settings], BackendFactory]


class StandIn:
    """A folder that stands for a model.

    Args:
        path: of the folder, which is made.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self._slow = path / _SLOW

    def slow_down(self) -> None:
        """Let rows take time, so that there is time to kill processes."""
        self._slow.touch()

    def speed_up(self) -> None:
        self._slow.unlink()


class _Backend(FakeBackend):
    """Heeds `--max-model-len`."""

    @property
    def info(self) -> BackendInfo:
        known = super().info
        given = self._settings.max_model_len
        return known if given == "auto" else replace(known, max_model_len=given)


def backend_factory(make: Make) -> Make:
    """Return a function that makes the stand-in for a model of its name, and other backends so."""

    def made(settings: Settings) -> BackendFactory:
        model = Path(settings.model)
        if model.name != NAME:
            return make(settings)
        return partial(_Backend, settings, before_decode=partial(_wait, model / _SLOW))

    return made


def _wait(slow: Path) -> None:
    if slow.exists():
        time.sleep(_SLOW_STEP_S)
