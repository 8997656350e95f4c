"""`latentwire collect`: arguments in, exit status out."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from latentwire.interrupts import interrupted_by_sigterm
from latentwire.settings_flags import flag_of
from latentwire_batch.collect import collect
from latentwire_batch.config import CollectSettings, OwnReplicaFields
from latentwire_batch.console import Console
from latentwire_batch.errors import UsageError
from latentwire_batch.exit_status import run_to_exit_status
from latentwire_batch.ranks.rank import ALONE, Rank
from latentwire_batch.ray.settings import check_placement
from latentwire_batch.workers.command_line import chosen_shard, collect_settings
from latentwire_batch.workers.count import num_cores, num_workers
from latentwire_batch.workers.processes import Workers


def main(args: list[str]) -> int:
    """Run one collection.

    Args:
        args: the command line after `latentwire collect`.

    Returns:
        0 all rows; 3 some rows failed, the others are written; 2 bad usage or unreadable input;
        130 interrupted; 1 any other error.
    """
    console = Console(sys.stderr)

    # No event loop handles it while the input is read, and while files are written and uploaded.
    @interrupted_by_sigterm()
    def run() -> int:
        settings = collect_settings(args)
        choice = chosen_shard(settings, args)
        if choice.notice is not None:
            console.say(choice.notice)
        _check_together(settings, console)
        num_processes = num_workers(settings.workers, settings.replica, num_cores())
        if num_processes == 1:
            return collect(settings, console, ALONE, choice.shard)
        rank = Rank.of_worker(0, num_processes, secrets.token_hex(8))
        workers = Workers(args, num_processes, rank.launch, console)
        return collect(settings, console, rank, choice.shard, workers)

    return run_to_exit_status(run, console, args)


def _check_together(settings: CollectSettings, console: Console) -> None:
    """Report flags that have no effect next to others.

    Raises:
        UsageError: when one of them would discard what the other needs.
    """
    if settings.overwrite and settings.retry_failed:
        raise UsageError("--retry-failed: cannot be used with --overwrite, which discards all rows")
    if settings.work_dir is not None and isinstance(settings.output_dir, Path):
        console.say("--work-dir: no effect, because --output-dir is a directory of this machine")
    check_placement(settings, settings.replica)
    unused = [name for name in OwnReplicaFields.model_fields if name in settings.model_fields_set]
    if settings.replica and unused:
        console.say(f"{', '.join(map(flag_of, unused))}: no effect with --replica")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
