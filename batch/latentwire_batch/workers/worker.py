"""A worker's process: a rank that `collect` has started. Its arguments are not for users."""

from __future__ import annotations

import sys
from functools import partial

from latentwire_batch.collect import collect
from latentwire_batch.console import Console
from latentwire_batch.exit_status import run_to_exit_status
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.workers.command_line import chosen_shard, collect_settings
from latentwire_batch.workers.processes import command_of
from latentwire_batch.workers.reports import ReportingProgress


def main(args: list[str]) -> int:
    """Collect the rows of one worker.

    Args:
        args: index of the worker, number of workers, launch; then the command line of `collect`.

    Returns:
        As `latentwire collect`.
    """
    index, count, launch, *given = args
    rank = Rank.of_worker(int(index), int(count), launch)
    console = Console(sys.stderr, command_of(rank.index), shows_progress=False)

    def run() -> int:
        settings = collect_settings(given)
        progress = partial(ReportingProgress, sys.stdout)
        shard = chosen_shard(settings, given).shard
        return collect(settings, console, rank, shard, progress=progress)

    return run_to_exit_status(run, console, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
