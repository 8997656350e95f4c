"""`latentwire compress`: arguments in, exit status out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from latentwire.settings_flags import name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.compression.compress import compress
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError
from latentwire_batch.exit_status import report_interrupted, status_of
from latentwire_batch.flags import parse_settings

_COMMAND = "latentwire compress"


def main(args: Sequence[str]) -> int:
    """Rewrite one dataset with compressed latents.

    Args:
        args: the command line after `latentwire compress`.

    Returns:
        0 all rows; 3 some rows could not be compressed, the others are written; 2 bad usage or an
        unreadable dataset; 130 interrupted; 1 any other error.
    """
    replace_unencodable()
    console = Console(sys.stderr, _COMMAND)
    # SIGTERM ends the run like Ctrl-C.
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One letter, as in other tools that write one output.
    words = ["--output-dir" if word == "-o" else word for word in args]
    try:
        settings = parse_settings(
            CompressSettings,
            words,
            prog=_COMMAND,
            description="Write a dataset again, with compressed latents or in another number "
            "format. All other columns stay as they are.",
        )
        return compress(settings, console)
    except BatchError as error:
        console.say(name_variables(str(error), CompressSettings, words))
        return status_of(error)
    except KeyboardInterrupt:
        return report_interrupted(console)
    except SystemExit as request:
        # argparse ends this way after --help.
        return int(request.code or 0)
    finally:
        signal.signal(signal.SIGTERM, earlier)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
