"""`latentwire merge`: arguments in, exit status out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from latentwire.settings_flags import name_variables
from latentwire.terminal import replace_unencodable
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError
from latentwire_batch.exit_status import report_interrupted, status_of
from latentwire_batch.flags import parse_settings
from latentwire_batch.shards.merge import merge
from latentwire_batch.shards.merge_settings import MergeSettings

_COMMAND = "latentwire merge"


def main(args: Sequence[str]) -> int:
    """Join the shards of one collection.

    Args:
        args: the command line after `latentwire merge`.

    Returns:
        0 all rows; 3 the shards hold failed rows, the others are written; 2 bad usage, or shards
        that are incomplete or do not belong together; 130 interrupted; 1 any other error.
    """
    replace_unencodable()
    console = Console(sys.stderr, _COMMAND)
    # SIGTERM ends the run like Ctrl-C.
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One letter, as in other tools that write one output.
    words = ["--output-dir" if word == "-o" else word for word in args]
    try:
        settings = parse_settings(
            MergeSettings,
            words,
            prog=_COMMAND,
            description="Join the shards of one collection to the dataset that one run makes. All "
            "stored values stay as they are.",
        )
        return merge(settings, console)
    except BatchError as error:
        console.say(name_variables(str(error), MergeSettings, words))
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
