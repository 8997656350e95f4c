"""A rank other than the first: it collects its share of the rows, and rank 0 does the rest."""

from __future__ import annotations

from latentwire_batch.dispatch.interrupts import run_interruptible
from latentwire_batch.existing_output import refuse_differences
from latentwire_batch.exit_status import ExitStatus
from latentwire_batch.output.room import named_disk
from latentwire_batch.ranks.rendezvous import Rendezvous
from latentwire_batch.ranks.share import Share
from latentwire_batch.run import Run
from latentwire_batch.run_settings import RunSettings, read_settings


def follow(run: Run) -> ExitStatus:
    """Collect this rank's rows, in a run that rank 0 announces.

    Raises:
        BatchError: when this rank cannot continue, or another one is gone; finished rows are kept.
        RunInterrupted: when a signal ended it.
    """
    rendezvous = Rendezvous(run.layout, run.rank)
    with named_disk(run.layout), rendezvous.interruptible():
        run_interruptible(_take_part(run, rendezvous))
    return ExitStatus.ALL_ROWS


async def _take_part(run: Run, rendezvous: Rendezvous) -> None:
    """Collect this rank's share. A rank that leaves early counts as lost."""
    seeds = await rendezvous.announced_seeds()
    wanted = run.wanted_settings(seeds.dataset_seed).with_seeds(seeds)

    async def agree(served: RunSettings) -> None:
        refuse_differences(await rendezvous.stored_settings(), served)

    with rendezvous.membership(), Share(run, wanted, agree, rendezvous.watch) as share:
        if not _is_nothing_left(run, share, wanted):
            with named_disk(run.layout, share.bytes_needed):
                await share.collect()
        rendezvous.note_done()


def _is_nothing_left(run: Run, share: Share, wanted: RunSettings) -> bool:
    """Whether the share is complete: no model has to be loaded for it then."""
    stored = read_settings(run.layout.settings)
    if stored is None:
        return run.rank.index >= run.num_rows
    refuse_differences(stored, wanted)
    return not share.has_pending_rows()
