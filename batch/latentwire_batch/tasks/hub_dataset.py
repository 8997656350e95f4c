"""A dataset of the Hugging Face hub, saved in a form that the reader streams."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentwire_batch.errors import InputError
from latentwire_batch.locations import is_url
from latentwire_batch.tasks.rows import RowFields

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_ADDRESSES = ("https://huggingface.co/datasets/", "hf://datasets/")
_FILE = re.compile(r"\.(jsonl?|ndjson|parquet|arrow|csv|tsv|txt|gz|bz2|xz|zst|lz4|zip)$", re.I)
_MAX_NAMES = 20
_KEY_ADVICE = "a private or gated dataset needs a token in HF_TOKEN"


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset of the hub.

    Attributes:
        dataset: its name, `owner/name`.
        dataset_config: one of its configurations; None: the only one, or the default.
        split: one of its splits; None: the only one.
        dataset_revision: branch, tag or commit; None: the newest.
    """

    dataset: str
    dataset_config: str | None = None
    split: str | None = None
    dataset_revision: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HubDataset | None:
        """Read what `to_json` returned; None when it names no dataset."""
        if "dataset" not in value:
            return None
        return cls(
            value["dataset"],
            value.get("dataset_config"),
            value.get("split"),
            value.get("dataset_revision"),
        )

    def to_json(self) -> dict[str, str]:
        """Return the choices that were made, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def hub_datasets_to_json(hub_datasets: Sequence[HubDataset]) -> dict[str, Any]:
    """Return what is recorded of the datasets of the hub that an input consists of."""
    if len(hub_datasets) > 1:
        return {"datasets": [one.to_json() for one in hub_datasets]}
    return hub_datasets[0].to_json() if hub_datasets else {}


def hub_datasets_from_json(value: Mapping[str, Any]) -> tuple[HubDataset, ...]:
    """Read what `hub_datasets_to_json` returned; other values may stand next to it."""
    found = map(HubDataset.from_json, value.get("datasets", [value]))
    return tuple(one for one in found if one is not None)


def hub_name(text: str, is_marked: bool = False) -> str | None:
    """Return the name of the hub's dataset that a text stands for; None for a file or folder.

    Args:
        text: `owner/name`, or the address of the dataset's page.
        is_marked: whether other settings say that it is one, so that `name` alone is one, too.
    """
    for address in _ADDRESSES:
        name = text.removeprefix(address).rstrip("/")
        # A longer address is that of one of its files.
        if name != text and _NAME.fullmatch(name):
            return name
    if is_url(text):
        return None
    path = Path(text)
    text = path.as_posix()
    if path.exists() or not _NAME.fullmatch(text) or _FILE.search(text):
        return None
    is_elsewhere = "/" in text and not path.parent.exists()
    return text if is_marked or is_elsewhere else None


@dataclass(frozen=True)
class SavedSplit:
    """One split of a dataset of the hub, saved here.

    Attributes:
        name: of the split; that of a slice, like `train[:100]`, is in front of the bracket.
        path: of a `load_from_disk` directory.
    """

    name: str
    path: Path


@contextmanager
def saved_hub_dataset(
    wanted: HubDataset,
    fields: RowFields | None = None,
    limit: int | None = None,
    temp_dir: Path | None = None,
) -> Iterator[Path]:
    """Save one split as a `load_from_disk` directory that lives as long as the context.

    Args:
        wanted: the split.
        fields: to save; None: all. All are saved, too, when the dataset has no task.
        limit: maximum number of rows to save; None: all.
        temp_dir: parent of the directory; None: the system's directory for temporary files.

    Raises:
        InputError: when it cannot be loaded; the text is the predicate of "the dataset".
    """
    with saved_hub_splits(wanted, fields, limit, temp_dir, takes_all=False) as splits:
        yield splits[0].path


@contextmanager
def saved_hub_splits(
    wanted: HubDataset,
    fields: RowFields | None = None,
    limit: int | None = None,
    temp_dir: Path | None = None,
    *,
    takes_all: bool = True,
) -> Iterator[list[SavedSplit]]:
    """Save splits like `saved_hub_dataset`.

    Args:
        wanted: the dataset, and one of its splits or none.
        fields: see `saved_hub_dataset`.
        limit: maximum number of rows to save of each split; None: all.
        temp_dir: see `saved_hub_dataset`.
        takes_all: whether all splits are saved when none is wanted, instead of the only one.

    Raises:
        InputError: see `saved_hub_dataset`.
    """
    # Importing it takes a second, and nothing else needs it.
    import datasets

    _keep_quiet(datasets)
    splits = _loaded_splits(datasets, wanted, takes_all)
    with ExitStack() as opened:
        try:
            directory = tempfile.TemporaryDirectory(prefix="latentwire-", dir=temp_dir)
            parent = Path(opened.enter_context(directory))
            saved: list[SavedSplit] = []
            for name, split in splits.items():
                path = parent / f"split-{len(saved)}"
                _needed(split, fields, limit).save_to_disk(str(path))
                saved.append(SavedSplit(name, path))
        except OSError as error:
            raise InputError(f"cannot be copied to a temporary folder: {_reason(error)}") from error
        yield saved


def _needed(split: Any, fields: RowFields | None, limit: int | None) -> Any:
    if fields is not None and set(fields.task_columns) & set(split.column_names):
        kept = [name for name in dict.fromkeys(fields.columns) if name in split.column_names]
        split = split.select_columns(kept)
    return split.select(range(limit)) if limit is not None and limit < len(split) else split


def _keep_quiet(datasets: Any) -> None:
    """Leave out the libraries' warnings, and in a log their bars: the error says what matters."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.utils.logging.set_verbosity_error()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()


def _loaded_splits(datasets: Any, wanted: HubDataset, takes_all: bool) -> dict[str, Any]:
    name, split = wanted.dataset, wanted.split
    # The library prepares all splits whichever is wanted. It reads slices, like "train[:100]".
    is_slice = split is not None and not split.isidentifier() and "[" in split
    try:
        loaded = datasets.load_dataset(
            name,
            wanted.dataset_config,
            revision=wanted.dataset_revision,
            split=split if is_slice else None,
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(f"cannot be found: {_one_line(error)} {_KEY_ADVICE}") from error
    except ConnectionError as error:
        raise InputError(
            "is not in the cache, and the hub cannot be reached; on a machine "
            "without a network, pass its files instead"
        ) from error
    except datasets.exceptions.DatasetsError as error:
        reason = type(error).__name__
        raise InputError(f"cannot be read as a table ({reason}); pass one of its files") from error
    except ValueError as error:
        raise InputError(_wrong_choice(datasets, wanted)) from error
    except OSError as error:
        raise InputError(f"cannot be loaded: {_reason(error)}") from error
    except RuntimeError as error:
        # It consists of code, which is not run.
        raise InputError("cannot be loaded without running its code; pass its files") from error
    if split is not None and is_slice:
        return {split.partition("[")[0]: loaded}
    return _choose(loaded, wanted, takes_all)


def _choose(splits: Any, wanted: HubDataset, takes_all: bool) -> dict[str, Any]:
    names = list(splits)
    if wanted.split is not None:
        if wanted.split not in splits:
            raise InputError(f"has no split {wanted.split!r}; it has {_shown(names)}")
        return {wanted.split: splits[wanted.split]}
    if len(names) != 1 and not takes_all:
        raise InputError(f"has several splits; choose one of: {_shown(names)}")
    return dict(splits)


def _wrong_choice(datasets: Any, wanted: HubDataset) -> str:
    """Word the refusal of a configuration or a slice."""
    configs: list[str] = []
    # Its errors say less than the one that is reported.
    with suppress(Exception):
        configs = datasets.get_dataset_config_names(
            wanted.dataset, revision=wanted.dataset_revision
        )
    if wanted.dataset_config is None and len(configs) > 1:
        return f"has several configurations; choose one of: {_shown(configs)}"
    if wanted.dataset_config is not None and configs and wanted.dataset_config not in configs:
        return f"has no configuration {wanted.dataset_config!r}; it has {_shown(configs)}"
    choices = ", ".join(f"{name} {value!r}" for name, value in wanted.to_json().items())
    return f"is neither on the hub nor in the cache: {choices}"


def _reason(error: OSError) -> str:
    # Not `strerror`: libraries put the path into it.
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
