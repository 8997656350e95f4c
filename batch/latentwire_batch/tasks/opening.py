"""From the settings of the input to the file or folder that is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.locations import Place, place_of
from latentwire_batch.tasks.arrow_files import input_errors, is_split_directory, split_names
from latentwire_batch.tasks.hub_dataset import HubDataset, hub_name, saved_hub_dataset
from latentwire_batch.tasks.inputs import InputPart, named_inputs

_HUB_FLAGS = {"dataset_config": "--dataset-config", "dataset_revision": "--dataset-revision"}


@dataclass(frozen=True)
class OpenedTasks:
    """What the settings name, as files and folders here.

    Attributes:
        parts: in the order of the rows.
        hub_datasets: those of the hub that the parts are copies of, in order.
    """

    parts: tuple[InputPart, ...]
    hub_datasets: tuple[HubDataset, ...] = ()


@contextmanager
def opened_tasks(settings: CollectSettings, notify: Notify) -> Iterator[OpenedTasks]:
    """Find what the settings name, and load what is on the hub.

    Args:
        settings: of the run.
        notify: told that something is loaded.

    Yields:
        Files and folders that live as long as the context.

    Raises:
        InputError: when the hub's dataset cannot be loaded, or the folder has no such split.
        UsageError: when a setting does not suit the input.
    """
    inputs = named_inputs(settings.dataset)
    hubs = [_hub_dataset(settings, one.location) for one in inputs]
    _refuse_unused(settings, any(hub is not None for hub in hubs))
    parts: list[InputPart] = []
    with ExitStack() as opened:
        for one, hub in zip(inputs, hubs, strict=True):
            if hub is None:
                path = _local(settings, place_of(one.location))
            else:
                path = opened.enter_context(_loaded(settings, hub, notify))
            parts.append(InputPart(one.split, path))
        yield OpenedTasks(tuple(parts), tuple(hub for hub in hubs if hub is not None))


def _hub_dataset(settings: CollectSettings, location: str) -> HubDataset | None:
    """Return the dataset of the hub that a location names; None when it is a path."""
    choices = (settings.dataset_config, settings.split, settings.dataset_revision)
    is_marked = any(choice is not None for choice in choices)
    name = hub_name(location, is_marked)
    return None if name is None else HubDataset(name, *choices)


def _refuse_unused(settings: CollectSettings, has_hub: bool) -> None:
    for name, flag in _HUB_FLAGS.items():
        if getattr(settings, name) is not None and not has_hub:
            raise UsageError(f"{flag}: is for datasets of the hub, but --dataset is a path")


@contextmanager
def _loaded(settings: CollectSettings, hub: HubDataset, notify: Notify) -> Iterator[Path]:
    notify(f"loading the dataset {hub.dataset} from the Hugging Face hub, or from its cache")
    with ExitStack() as opened:
        try:
            path = opened.enter_context(saved_hub_dataset(hub, settings.row_fields, settings.limit))
        except InputError as error:
            raise InputError(
                f"--dataset: no file or folder here, and the hub's dataset {hub.dataset} {error}"
            ) from error
        yield path


def _local(settings: CollectSettings, path: Place) -> Place:
    split = settings.split
    try:
        with input_errors():
            has_splits = is_split_directory(path)
    except InputError as error:
        raise InputError(f"--dataset: {error}") from error
    if not has_splits:
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
