"""`latentwire collect`: arguments in, exit status out."""

from __future__ import annotations

import sys

from latentwire_batch.collect import collect
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError
from latentwire_batch.exit_status import report_interrupted, status_of
from latentwire_batch.flags import parse_settings


def main(args: list[str]) -> int:
    """Run one collection.

    Args:
        args: the command line after `latentwire collect`.

    Returns:
        0 all rows; 3 some rows failed, the others are written; 2 bad usage or unreadable input;
        130 interrupted; 1 any other error.
    """
    console = Console(sys.stderr)
    try:
        settings = parse_settings(
            CollectSettings,
            args,
            prog="latentwire collect",
            description="Plan every task of a dataset, and store the plans with their latents.",
        )
        return collect(settings, console)
    except BatchError as error:
        console.say(str(error))
        return status_of(error)
    except KeyboardInterrupt:
        return report_interrupted(console)
    except SystemExit as request:
        # argparse exits after --help.
        return int(request.code or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
