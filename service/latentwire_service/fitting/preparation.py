"""What every fit does first: opens its dataset, holds tasks out, loads the receiver."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from latentwire_service.engine.hf.loader import LoadedModel, load_model, pick_device, pick_dtype
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.samples import Dataset, Sample, Split
from latentwire_service.fitting.settings import DatasetSettings, ReceiverSettings


def open_split(settings: DatasetSettings, width: int | None = None) -> Split:
    """Open the dataset of a fit.

    Args:
        settings: of the command.
        width: of its latents; None: that of the first one.

    Raises:
        BridgeError: it cannot be used.
    """
    dataset = Dataset.from_path(Path(settings.dataset), settings.split)
    return Split(
        dataset, settings.seed, settings.held_out, settings.max_rows, settings.limit, width
    )


def held_out_samples(split: Split, max_scored: int) -> list[Sample]:
    """Return the first held-out samples.

    Args:
        split: of the fit.
        max_scored: most samples to return.

    Raises:
        BridgeError: there are fewer than two.
    """
    found = list(islice(split.held_out(), max_scored))
    if len(found) < 2:
        raise BridgeError(
            "DATASET: fewer than 2 usable rows are held out", "--held-out sets their fraction."
        )
    return found


def load_receiver(settings: ReceiverSettings) -> LoadedModel:
    """Load the receiver of a fit.

    Raises:
        ModelError: it cannot be loaded.
    """
    device = pick_device(settings.device)
    return load_model(
        settings.model,
        device=device,
        dtype=pick_dtype(settings.dtype, device),
        cache_dir=settings.cache_dir.expanduser(),
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )


def limit_threads(settings: ReceiverSettings) -> None:
    """Set the number of CPU threads, if the settings state one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
