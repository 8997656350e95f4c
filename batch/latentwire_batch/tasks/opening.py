"""From the settings of the input to the files and folders that are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from latentwire.split_files import (
    DATA_DIRECTORY,
    SplitFilesError,
    find_splits,
    why_no_split_name,
)
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Notify
from latentwire_batch.errors import InputError, UsageError
from latentwire_batch.locations import Place, place_of
from latentwire_batch.locations.urls import lacks_slash
from latentwire_batch.tasks.arrow_files import (
    STATE_NAME,
    input_errors,
    is_split_directory,
    split_names,
)
from latentwire_batch.tasks.hub_dataset import HubDataset, hub_name, saved_hub_splits
from latentwire_batch.tasks.inputs import NOT_WHOLE, InputPart, NamedInput, named_inputs

_HUB_FLAGS = {"dataset_config": "--dataset-config", "dataset_revision": "--dataset-revision"}
_DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class OpenedTasks:
    """What the settings name, as files and folders here.

    Attributes:
        parts: in the order of the rows; they name splits only for the hub layout.
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
    for one in inputs:
        if lacks_slash(one.location) and not Path(one.location).exists():
            raise UsageError(
                "--dataset: a URL has two slashes after its scheme, like s3://bucket/file"
            )
    _refuse_names(settings, inputs)
    hubs = [_hub_dataset(settings, one.location) for one in inputs]
    _refuse_unused(settings, any(hub is not None for hub in hubs))
    parts: list[InputPart] = []
    with ExitStack() as opened:
        for one, hub in zip(inputs, hubs, strict=True):
            if hub is None:
                found = _local(settings, place_of(one.location), one)
            else:
                found = opened.enter_context(_loaded(settings, hub, one, notify))
            parts += _named(settings, one, found)
        _refuse_interrupted(parts)
        yield OpenedTasks(tuple(parts), tuple(hub for hub in hubs if hub is not None))


def _refuse_names(settings: CollectSettings, inputs: tuple[NamedInput, ...]) -> None:
    if inputs[0].split is not None:
        if settings.layout != "hub":
            raise UsageError(
                f"--dataset: {inputs[0].split}= names a split, for --layout hub; {NOT_WHOLE}"
            )
        if settings.split is not None:
            raise UsageError("--split: --dataset names the splits already")


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
def _loaded(
    settings: CollectSettings, hub: HubDataset, given: NamedInput, notify: Notify
) -> Iterator[list[InputPart]]:
    notify(f"loading the dataset {hub.dataset} from the Hugging Face hub, or from its cache")
    takes_all = settings.layout == "hub"
    with ExitStack() as opened:
        try:
            splits = opened.enter_context(
                saved_hub_splits(hub, settings.row_fields, settings.limit, takes_all=takes_all)
            )
        except InputError as error:
            raise InputError(
                f"--dataset: no file or folder here, and the hub's dataset {hub.dataset} {error}"
            ) from error
        yield _of_name([InputPart(split.name, split.path) for split in splits], given)


def _local(settings: CollectSettings, path: Place, given: NamedInput) -> list[InputPart]:
    parts = _of_name(_splits_in(path), given)
    names = list(dict.fromkeys(part.split for part in parts if part.split is not None))
    split = settings.split
    if not names:
        if split is not None and settings.layout == "classic":
            raise UsageError(
                "--split: is for datasets of the hub and for folders with several splits; with "
                "--layout hub, it names the split of any input"
            )
        return [InputPart(split, path)]
    if split is None and len(names) > 1 and settings.layout == "classic":
        raise InputError(
            f"--dataset: holds several splits; --split names one of: {', '.join(names)}"
        )
    if split is not None and split not in names:
        raise InputError(f"--split: no split {split!r}; --dataset has {', '.join(names)}")
    return [part for part in parts if split in (None, part.split)]


def _splits_in(path: Place) -> list[InputPart]:
    """Return the parts of a folder whose files say of which split they are; empty for others."""
    try:
        with input_errors():
            # First: a web server may answer with a page where a name follows that of a file.
            if not path.is_dir():
                return []
            if is_split_directory(path):
                return [InputPart(name, path / name) for name in split_names(path)]
            if (path / STATE_NAME).is_file():
                return []
            has_own = any(True for _ in path.glob("*.parquet"))
            splits = find_splits(cast(Path, path if has_own else path / DATA_DIRECTORY))
    except (InputError, SplitFilesError) as error:
        raise InputError(f"--dataset: {error}") from error
    return [InputPart(split.name, file) for split in splits for file in split.paths]


def _of_name(parts: list[InputPart], given: NamedInput) -> list[InputPart]:
    """Choose the parts of an input that has a name: of several splits, the one of this name."""
    names = list(dict.fromkeys(part.split for part in parts))
    if given.split is None or len(names) < 2:
        return parts
    if given.split not in names:
        known = ", ".join(map(str, names))
        raise InputError(
            f"--dataset: {given.split}= names no split of its input, which has {known}"
        )
    return [part for part in parts if part.split == given.split]


def _named(settings: CollectSettings, given: NamedInput, parts: list[InputPart]) -> list[InputPart]:
    """Name the split of each part, for the hub layout."""
    if settings.layout == "classic":
        return [replace(part, split=None) for part in parts]
    named = [
        replace(part, split=given.split or part.split or settings.split or _DEFAULT_SPLIT)
        for part in parts
    ]
    for part in named:
        reason = why_no_split_name(part.split or "")
        if reason is not None:
            flag = "--dataset" if settings.split is None else "--split"
            raise UsageError(
                f"{flag}: the hub layout cannot name files after the split {part.split!r}: {reason}"
            )
    return named


def _refuse_interrupted(parts: list[InputPart]) -> None:
    """Refuse a split whose rows do not follow one another."""
    seen: list[str | None] = []
    for part in parts:
        if part.split in seen[:-1]:
            raise UsageError(
                f"--dataset: several inputs hold a split {part.split}, with another one between; "
                "name each input, like train=PATH, or change their order"
            )
        if part.split not in seen:
            seen.append(part.split)
