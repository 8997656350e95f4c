"""`latentwire merge`: arguments in, exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from latentwire.interrupts import interrupted_by_sigterm
from latentwire_batch.console import Console
from latentwire_batch.exit_status import run_to_exit_status
from latentwire_batch.flags import parse_settings
from latentwire_batch.shards.merge import merge
from latentwire_batch.shards.merge_settings import MergeSettings

_COMMAND = "latentwire merge"
_DESCRIPTION = (
    "Join the shards of one collection to the dataset that one run makes. All "
    "stored values stay as they are."
)


def main(args: Sequence[str]) -> int:
    """Join the shards of one collection.

    Args:
        args: the command line after `latentwire merge`.

    Returns:
        0 all rows; 3 the shards hold failed rows, the others are written; 2 bad usage, or shards
        that are incomplete or do not belong together; 130 interrupted; 1 any other error.
    """
    console = Console(sys.stderr, _COMMAND)

    def run() -> int:
        settings = parse_settings(MergeSettings, args, prog=_COMMAND, description=_DESCRIPTION)
        with interrupted_by_sigterm():
            return merge(settings, console)

    return run_to_exit_status(run, console, args, MergeSettings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
