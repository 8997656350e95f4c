"""Start-up of the service: settings, logging, exit status.

torch and transformers take seconds to import, so they are imported after the settings are checked:
help and error messages appear at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentwire.settings_flags import FlagError, name_variables, parse_settings
from latentwire_service.api.access_policy import PolicyError, is_open_to_all, policy_of
from latentwire_service.engine.hf.cpu.cpu_tuning import (
    cpu_name,
    drop_unreadable,
    keep_freed_memory,
    thread_environment,
)
from latentwire_service.engine_factory import engine_refusal
from latentwire_service.settings import Settings
from latentwire_service.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from latentwire_service.compression.catalog import CompressorCatalog

EXIT_BAD_SETTINGS = 2
_COMMAND = "latentwire serve"
_ONE_PROCESS = "the service is one process"
_OWN_TELEMETRY = "the service makes its own spans and metrics"
# Variables of libraries, each with the reason for which the service ignores it. prometheus_client
# writes its metrics to files in its directory, from its import on. FastAPI loads the providers at
# the first request, and would make spans that hold the path.
_IGNORED_VARIABLES = {
    "PROMETHEUS_MULTIPROC_DIR": _ONE_PROCESS,
    "prometheus_multiproc_dir": _ONE_PROCESS,
    "OTEL_PYTHON_TRACER_PROVIDER": _OWN_TELEMETRY,
    "OTEL_PYTHON_METER_PROVIDER": _OWN_TELEMETRY,
    "OTEL_PYTHON_LOGGER_PROVIDER": _OWN_TELEMETRY,
}

logger = logging.getLogger(__name__)


def main(args: Sequence[str]) -> int:
    """Run `latentwire serve`.

    Returns:
        0 after a signal and a drain, 1 when the engine failed or the address is in use, 2 for bad
        settings or a model that cannot be served.
    """
    try:
        settings = parse_settings(Settings, args, _COMMAND, "Serve latents of one model over HTTP.")
    except FlagError as error:
        return _refuse(name_variables(str(error), Settings, args))
    configure_logging(settings.log_level, settings.log_format)
    try:
        policy = policy_of(settings)
    except PolicyError as error:
        return _refuse(name_variables(str(error), Settings, args))
    refusal = engine_refusal(settings)
    if refusal is not None:
        return _refuse(name_variables(refusal, Settings, args))
    if is_open_to_all(settings):
        logger.warning(
            "--host %s lets other machines call, and there is no API key: everybody who reaches "
            "the port may use the model; --api-key-file sets keys",
            settings.host,
        )
    # Until the server installs its own handler, there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _ignore_variables()
    os.environ.update(thread_environment(os.environ))
    keep_freed_memory()
    # It imports torch, which reads the variables.
    if not _are_bridges(settings):
        return EXIT_BAD_SETTINGS
    compressors = _compressors(settings)
    if compressors is None:
        return EXIT_BAD_SETTINGS
    if settings.compile:
        # Later starts reuse inductor's output, also after a reboot.
        compiled = settings.cache_dir.expanduser() / f"inductor-{cpu_name()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    try:
        # FastAPI imports it if it is installed, and it reads the variable at its import.
        importlib.import_module("opentelemetry.propagate")
    except ImportError:
        pass
    except ValueError as error:
        return _refuse(f"OTEL_PROPAGATORS: {error}")
    from latentwire_service.server import serve

    return serve(settings, policy, compressors)


def _are_bridges(settings: Settings) -> bool:
    """Check the directories before the model is loaded, which takes longer."""
    if not settings.bridge and settings.latent_generator is None:
        return True
    from latentwire_service.bridges.directory import check_bridges
    from latentwire_service.bridges.generator import check_generator
    from latentwire_service.engine.seams.bridge import BridgeError

    flag = "--bridge"
    try:
        check_bridges(settings.bridge)
        flag = "--latent-generator"
        if settings.latent_generator is not None:
            check_generator(settings.latent_generator)
    except BridgeError as error:
        lines = [f"{_COMMAND}: {flag}: {error}", *filter(None, [error.hint])]
        sys.stderr.write("\n".join(lines) + "\n")
        return False
    return True


def _compressors(settings: Settings) -> CompressorCatalog | None:
    """Load the compressors; None: one cannot be used, and the reason is written."""
    from latentwire.compressors import CompressorError
    from latentwire_service.compression.catalog import load_catalog

    try:
        return load_catalog(settings.compressor)
    except CompressorError as error:
        _refuse(f"--compressor: {error.reason}")
        return None


def _ignore_variables() -> None:
    """Drop variables that would change a library below in a way that the service cannot use."""
    for name, reason in _IGNORED_VARIABLES.items():
        if os.environ.pop(name, None):
            logger.warning("%s is ignored: %s", name, reason)
    for name in drop_unreadable(os.environ):
        logger.warning("%s is ignored: it is not a list of CPUs, such as 0-3,8", name)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{_COMMAND}: {reason}\n")
    return EXIT_BAD_SETTINGS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
