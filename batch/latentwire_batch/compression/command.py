"""`latentwire compress`: arguments in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from latentwire.interrupts import interrupted_by_sigterm
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.compression.compress import compress
from latentwire_batch.console import Console
from latentwire_batch.exit_status import run_to_exit_status
from latentwire_batch.flags import parse_settings

_COMMAND = "latentwire compress"
_DESCRIPTION = (
    "Write a dataset again, with compressed latents or in another number "
    "format. All other columns stay as they are."
)


def main(args: Sequence[str]) -> int:
    """Rewrite one dataset with compressed latents.

    Args:
        args: the command line after `latentwire compress`.

    Returns:
        0 all rows; 3 some rows could not be compressed, the others are written; 2 bad usage or an
        unreadable dataset; 130 interrupted; 1 any other error.
    """
    console = Console(sys.stderr, _COMMAND)

    def run() -> int:
        settings = parse_settings(CompressSettings, args, prog=_COMMAND, description=_DESCRIPTION)
        with interrupted_by_sigterm():
            return compress(settings, console)

    return run_to_exit_status(run, console, args, CompressSettings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
