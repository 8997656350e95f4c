"""The real service over a backend that fails at prompts with a mark: a program for own replicas."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

from latentwire_service.__main__ import main
from latentwire_service.engine.backend import BackendFactory
from latentwire_service.settings import Settings
from support.fake_backend import FakeBackend

MARK = "KILL"


class _Fragile(FakeBackend):
    def _step(self) -> None:
        if any(MARK.encode() in bytes(r.spec.prompt.token_ids) for r in self._running):
            raise RuntimeError("index out of range in self")
        super()._step()


def _factory(settings: Settings) -> BackendFactory:
    return partial(_Fragile, settings)


if __name__ == "__main__":
    with patch("latentwire_service.server.backend_factory", _factory):
        sys.exit(main(sys.argv[1:]))
