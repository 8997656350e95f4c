"""`latentwire collect`: arguments in, exit status out."""

from __future__ import annotations

import sys
import time

from latentwire_batch.collect import collect
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError
from latentwire_batch.exit_status import ExitStatus, status_of
from latentwire_batch.flags import parse_settings


def main(args: list[str]) -> int:
    """Run one collection.

    Args:
        args: the command line after `latentwire collect`.

    Returns:
        0 all rows; 3 some rows failed, the others are written; 2 bad usage or unreadable input;
        130 interrupted; 1 anything else.
    """
    console = Console(sys.stderr)
    try:
        settings = parse_settings(
            CollectSettings,
            args,
            prog="latentwire collect",
            description="Plan every task of a dataset and store the plans with their latents.",
        )
        return collect(settings, console, time.monotonic)
    except BatchError as error:
        console.say(str(error))
        return status_of(error)
    except KeyboardInterrupt:
        console.say("interrupted; the same command goes on from here")
        return ExitStatus.INTERRUPTED
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
