"""From settings to a backend. Cheap to import: an engine is imported when it is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from latentwire_service.engine.backend import Backend, BackendFactory, StepStats
from latentwire_service.settings import Settings


def backend_factory(settings: Settings) -> BackendFactory:
    """Return the factory of the backend that the settings name."""
    return partial(_local_backend, settings)


def _local_backend(
    settings: Settings,
    on_step: Callable[[StepStats], None],
    on_failure: Callable[[Exception], None],
) -> Backend:
    # Importing torch takes seconds: on the loader's thread, while `/health` answers already.
    from latentwire_service.local_backend import LocalBackend

    return LocalBackend(settings, on_step, on_failure)
