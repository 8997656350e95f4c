"""From the settings of the input to the file or folder that is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.tasks.arrow_files import input_errors, is_split_directory, split_names
from latentwire_batch.tasks.hub_dataset import HubDataset, hub_name, saved_hub_dataset

_HUB_FLAGS = {"dataset_config": "--dataset-config", "dataset_revision": "--dataset-revision"}


def hub_dataset(settings: CollectSettings) -> HubDataset | None:
    """Return the dataset of the hub that the settings name; None when they name a path."""
    choices = (settings.dataset_config, settings.split, settings.dataset_revision)
    is_marked = any(choice is not None for choice in choices)
    name = hub_name(settings.dataset, is_marked)
    return None if name is None else HubDataset(name, *choices)


@contextmanager
def opened_tasks(
    settings: CollectSettings, hub: HubDataset | None, notify: Notify
) -> Iterator[Path]:
    """Find what the settings name, and load it when it is on the hub.

    Args:
        settings: of the run.
        hub: as `hub_dataset` returns it.
        notify: told that something is loaded.

    Yields:
        A file or folder for `TaskSource`, which lives as long as the context.

    Raises:
        InputError: when the hub's dataset cannot be loaded, or the folder has no such split.
        UsageError: when a setting does not suit the input.
    """
    if hub is None:
        yield _local(settings)
        return
    notify(f"loading the dataset {hub.dataset} from the Hugging Face hub, or from its cache")
    with ExitStack() as opened:
        try:
            path = opened.enter_context(saved_hub_dataset(hub, settings.row_fields, settings.limit))
        except InputError as error:
            raise InputError(
                f"--dataset: no file or folder here, and the hub's dataset {hub.dataset} {error}"
            ) from error
        yield path


def _local(settings: CollectSettings) -> Path:
    path, split = settings.dataset, settings.split
    for name, flag in _HUB_FLAGS.items():
        if getattr(settings, name) is not None:
            raise UsageError(f"{flag}: is for datasets of the hub, but --dataset is a path")
    if not is_split_directory(path):
        if split is not None:
            raise UsageError(
                "--split: is for datasets of the hub and for folders with several splits"
            )
        return path
    with input_errors():
        names = split_names(path)
    if split is None and len(names) > 1:
        raise InputError(
            f"--dataset: holds several splits; --split names one of: {', '.join(names)}"
        )
    if split is not None and split not in names:
        raise InputError(f"--split: no split {split!r}; --dataset has {', '.join(names)}")
    return path / (split or names[0])
