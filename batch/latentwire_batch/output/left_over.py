"""Removal of what a run left behind that ended right after its manifest was there."""

from __future__ import annotations

from contextlib import suppress

from latentwire_batch.errors import BatchError
from latentwire_batch.output.destination import Destination
from latentwire_batch.output.ownership import locked_output


def clear_left_over(destination: Destination) -> None:
    """Remove what is left over next to a finished dataset, if nobody writes there.

    The dataset is complete without that, so nothing is raised when it cannot be done.

    Args:
        destination: of a finished dataset; the caller holds no lock of it.
    """
    with suppress(BatchError):
        if destination.has_left_over():
            with locked_output(destination.layout), destination.owned():
                destination.remove_left_over()
