"""From settings to a backend. Cheap to import: an engine is imported when it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from latentwire_service.engine.backend import Backend, BackendFactory, StepStats
from latentwire_service.engine.errors import ModelError
from latentwire_service.settings import Settings

# Where the process is says nothing about a library.
_NEVER_BLAMED = ("PWD", "OLDPWD")
# Shorter values, like a number, occur in a message by chance.
_MIN_QUOTED_CHARS = 3


def backend_factory(settings: Settings) -> BackendFactory:
    """Return the factory of the backend that the settings name."""
    return partial(_local_backend, settings)


def _local_backend(
    settings: Settings,
    on_step: Callable[[StepStats], None],
    on_failure: Callable[[Exception], None],
) -> Backend:
    # Importing torch takes seconds: on the loader's thread, while `/health` answers already.
    try:
        from latentwire_service.local_backend import LocalBackend
    except (OSError, ValueError) as error:
        # Libraries read their variables when they are imported.
        names = variables_quoted_in(str(error), os.environ)
        if not names:
            raise
        raise ModelError(f"a library cannot use the variable {' or '.join(names)}") from error

    return LocalBackend(settings, on_step, on_failure)


def variables_quoted_in(message: str, environ: Mapping[str, str]) -> list[str]:
    """Name the environment variables whose values an error message quotes.

    Args:
        message: of a library.
        environ: of this process.
    """
    known = (
        (name, value.strip())
        for name, value in environ.items()
        if name.isupper() and name not in _NEVER_BLAMED and len(value.strip()) >= _MIN_QUOTED_CHARS
    )
    return sorted(name for name, value in known if value in message)
