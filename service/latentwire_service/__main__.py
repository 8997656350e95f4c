"""Start-up of the service: settings, logging, exit status.

What takes seconds to import (torch, transformers) is imported once the settings are known to be
good: help and refusals come at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from latentwire_service.api.access_policy import PolicyError, policy_of
from latentwire_service.engine.hf.cpu.cpu_tuning import (
    cpu_name,
    keep_freed_memory,
    thread_environment,
)
from latentwire_service.settings import Settings
from latentwire_service.telemetry.logs import configure_logging

EXIT_BAD_SETTINGS = 2


def main(args: Sequence[str]) -> int:
    """Run `latentwire serve`.

    Returns:
        0 after a drained stop, 1 when the engine was lost or the address is taken, 2 for bad
        settings or a model that cannot be served.
    """
    try:
        settings = CliApp.run(Settings, cli_args=list(args))
    except (ValidationError, SettingsError) as error:
        sys.stderr.write(f"latentwire serve: {_explain(error)}\n")
        return EXIT_BAD_SETTINGS
    configure_logging(settings.log_level, settings.log_format)
    try:
        policy = policy_of(settings)
    except PolicyError as error:
        sys.stderr.write(f"latentwire serve: {error}\n")
        return EXIT_BAD_SETTINGS
    # Until the server has its own handler: there is nothing to drain yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.update(thread_environment(os.environ))
    keep_freed_memory()
    if settings.compile:
        # What inductor compiled for one start is there for the next, after a reboot too.
        compiled = settings.cache_dir.expanduser() / f"inductor-{cpu_name()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    from latentwire_service.server import serve

    return serve(settings, policy)


def _explain(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error)
    return "; ".join(
        f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}"
        for problem in error.errors()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
