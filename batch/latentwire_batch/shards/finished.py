"""The finished shards in given folders: all of them are there, once, and of one collection."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire_batch.compression.outcome import STEP
from latentwire_batch.dataset.manifest import Manifest
from latentwire_batch.errors import InputError, LocationError, StorageError, reason_of
from latentwire_batch.locations import Place, shown_path
from latentwire_batch.output.durable import read_json
from latentwire_batch.output.layout import CLAIM_NAME, MANIFEST_NAME, OutputLayout
from latentwire_batch.output.locks import is_locked
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.run_settings import shown_values
from latentwire_batch.shards.folder import shards_in
from latentwire_batch.shards.shard import Shard

_MAX_NAMED = 10


@dataclass(frozen=True)
class FinishedShard:
    """The finished dataset of one shard.

    Attributes:
        shard: that it is.
        folder: that holds its dataset.
        manifest: the part that runs read.
        said: the whole manifest.
    """

    shard: Shard
    folder: Place
    manifest: Manifest
    said: Mapping[str, Any]

    @property
    def fleet(self) -> FleetSummary | None:
        """The replicas that answered last; None when there were none.

        Raises:
            StorageError: when the manifest is damaged.
        """
        with self.reading_manifest():
            fleet = self.said.get("replicas")
            return FleetSummary.from_json(fleet) if fleet else None

    @contextmanager
    def reading_manifest(self) -> Iterator[None]:
        """Raise StorageError when a value of the manifest is of another kind."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StorageError(f"shard {self.shard}: its manifest.json is damaged") from error


def digest_of(shards: Iterable[FinishedShard]) -> str:
    """Return a digest of the manifests: a shard that is collected again has another one.

    Raises:
        StorageError: when one cannot be read.
    """
    digest = hashlib.sha256()
    for shard in shards:
        try:
            content = (shard.folder / MANIFEST_NAME).read_bytes()
        except OSError as error:
            raise StorageError(f"shard {shard.shard}: its manifest.json is gone") from error
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def find_shards(folders: Sequence[Place]) -> list[FinishedShard]:
    """Find all shards of one collection.

    Args:
        folders: of shards, or that hold folders of shards.

    Returns:
        The shards in the order of their numbers.

    Raises:
        InputError: when one is missing, is not finished, or is there twice; or when a folder holds
            something else.
        StorageError: when a folder cannot be read.
    """
    found = _Found()
    for folder in _distinct(folders):
        found.add(folder)
    return found.complete()


class _Found:
    """What was found so far."""

    def __init__(self) -> None:
        self._places: dict[Shard, Place] = {}
        self._finished: dict[Shard, FinishedShard] = {}
        self._running: set[Shard] = set()
        self._retried: set[Shard] = set()

    def add(self, folder: Place) -> None:
        try:
            self._add(folder)
        except StorageError as error:
            raise StorageError(f"{shown(folder)}: {error}") from error

    def _add(self, folder: Place) -> None:
        # An unfinished run has its settings at the same place in a directory and behind a URL.
        said, unfinished = read_json(folder / MANIFEST_NAME), read_json(folder / CLAIM_NAME)
        shard = _shard_of(folder, said, unfinished)
        if shard in self._places:
            places = f"{shown(self._places[shard])} and {shown(folder)}"
            raise InputError(f"shard {shard} is there twice, in {places}; name one of them")
        self._places[shard] = folder
        layout = OutputLayout(folder) if isinstance(folder, Path) else None
        # A marker means that final files are being moved: the manifest may be an earlier one.
        is_moving = layout is not None and layout.marker.exists()
        if said is None or unfinished is not None or is_moving:
            if layout is not None and is_locked(layout.lock):
                self._running.add(shard)
            elif said is not None and not is_moving and Manifest.from_json(said).counts.failed:
                self._retried.add(shard)
            return
        manifest = Manifest.from_json(said)
        self._finished[shard] = FinishedShard(shard, folder, manifest, said)

    def complete(self) -> list[FinishedShard]:
        """Return the shards when all of them are finished."""
        counts = sorted({shard.count for shard in self._places})
        if len(counts) > 1:
            raise InputError(
                f"shards of {counts[0]} and shards of {counts[1]} are not of one collection"
            )
        every = [Shard(index, counts[0]) for index in range(counts[0])]
        missing = [shard for shard in every if shard not in self._places]
        stopped = [shard for shard in self._places if shard not in self._finished]
        idle = [shard for shard in stopped if shard not in self._running | self._retried]
        problems = [
            (missing, "missing: collect {them} with --shard, or name {their} folder"),
            (sorted(idle, key=_index), "unfinished: rerun {their} collection"),
            (
                sorted(self._retried, key=_index),
                "unfinished, because failed rows are retried: rerun {their} collection with "
                "--retry-failed",
            ),
            (
                sorted(self._running, key=_index),
                "still being collected: merge when {they} {are} done",
            ),
        ]
        texts = [_problem(shards, text) for shards, text in problems if shards]
        if texts:
            raise InputError("; ".join(texts))
        return [self._finished[shard] for shard in every]


def _index(shard: Shard) -> int:
    return shard.index


def _problem(shards: Sequence[Shard], text: str) -> str:
    if len(shards) == 1:
        words = {"them": "it", "their": "its", "they": "it", "are": "is"}
    else:
        words = {"them": "them", "their": "their", "they": "they", "are": "are"}
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return f"{name_shards(shards)} {words['are']} {text}"


def name_shards(shards: Sequence[Shard]) -> str:
    """Name shards in a message, the first ones only where there are many."""
    names = [str(shard) for shard in shards]
    if len(names) == 1:
        return f"shard {names[0]}"
    if len(names) > _MAX_NAMED:
        return f"shards {', '.join(names[:_MAX_NAMED])} and {len(names) - _MAX_NAMED} more"
    return f"shards {', '.join(names[:-1])} and {names[-1]}"


def _distinct(folders: Sequence[Place]) -> list[Place]:
    found: dict[str, Place] = {}
    for folder in folders:
        try:
            if not folder.is_dir():
                raise InputError(f"{shown(folder)}: {_no_folder(folder)}")
            inner: list[Place] = list(shards_in(folder)) or [folder]
        except LocationError as error:
            kind = InputError if error.is_users else StorageError
            raise kind(f"{shown(folder)}: cannot be read: {error.reason}") from error
        except OSError as error:
            raise InputError(f"{shown(folder)}: cannot be read: {reason_of(error)}") from error
        for place in inner:
            found.setdefault(identity(place), place)
    return list(found.values())


def _no_folder(place: Place) -> str:
    """Say what is where a folder should be."""
    if place.is_file():
        return "is a file; merge takes folders of shards, or folders that hold them"
    if place.exists():
        return "is not a directory"
    if isinstance(place, Path) and place.is_symlink():
        return "is a link to a directory that does not exist"
    return "no such directory"


def identity(place: Place) -> str:
    """Return a text that is the same for all names of one folder."""
    if isinstance(place, Path):
        return str(place.resolve())
    protocols = place.filesystem.protocol
    first = protocols if isinstance(protocols, str) else protocols[0]
    return f"{first}://{place.path}"


def _shard_of(
    folder: Place, said: Mapping[str, Any] | None, unfinished: Mapping[str, Any] | None
) -> Shard:
    """Return the shard in a folder, as its files say."""
    if said is not None and STEP in said:
        raise InputError(
            f"{shown(folder)}: was written by latentwire compress; merge the shards first, and "
            "compress the merged dataset"
        )
    settings = unfinished if said is None else said.get("settings")
    try:
        if settings is not None:
            return Shard.from_json(settings["shard"])
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{shown(folder)}: holds a dataset that is not a shard") from error
    # A run that was killed before its first row has written no settings.
    shard = Shard.of_folder(folder.name)
    if shard is None:
        raise InputError(f"{shown(folder)}: holds no shards")
    return shard


def shown(path: Place) -> str:
    """Name a folder in a message, which holds no absolute path and no key."""
    return shown_path(path, num_parts=2)


def check_same_collection(shards: Sequence[FinishedShard]) -> None:
    """Check that all shards were collected with the same settings, and hold all of their rows.

    Raises:
        InputError: naming the difference, and what avoids it.
    """
    settings = [shard.manifest.settings for shard in shards]
    flat = [{**_flat(one.to_json()), _LAYOUT: one.layout} for one in settings]
    usual = Counter(map(_key, flat)).most_common(1)[0][0]
    first = next(number for number, values in enumerate(flat) if _key(values) == usual)
    others = [number for number, values in enumerate(flat) if _key(values) != usual]
    if others:
        raise InputError(_difference(shards, flat, first, others))
    for shard in shards:
        counts, data = shard.manifest.counts, shard.manifest.settings.data
        expected = shard.shard.num_rows(data.num_rows)
        if not counts.finished + counts.failed == counts.rows == expected:
            raise InputError(f"shard {shard.shard} does not hold its {expected} rows")


def _difference(
    shards: Sequence[FinishedShard],
    flat: Sequence[Mapping[str, Any]],
    first: int,
    others: Sequence[int],
) -> str:
    usual, other = flat[first], flat[others[0]]
    names = [name for name in {**usual, **other} if usual.get(name) != other.get(name)]
    if _LAYOUT in names:
        # Only one of the layouts has splits.
        names = [name for name in names if name != _SPLITS]
    pairs = {name: shown_values(usual.get(name), other.get(name)) for name in names}
    found = [f"{name} is {one} and {another}" for name, (one, another) in pairs.items()]
    remedies = [remedy for start, remedy in _REMEDIES.items() if names[0].startswith(start)]
    odd = name_shards([shards[number].shard for number in others])
    return (
        f"shards {shards[first].shard} and {shards[others[0]].shard} were collected with different "
        f"settings: {'; '.join(found)}; {remedies[0] if remedies else 'use the same for all'}, and "
        f"collect {odd} again with --overwrite"
    )


_REMEDIES = {
    "data.": "let all shards read the same tasks",
    "seed": "give all shards the same --seed",
    "prompt.date": "give all shards the same --date",
    "model.": "let all shards use the same model",
}
_LAYOUT, _SPLITS = "layout", "splits"


def _key(values: Mapping[str, Any]) -> str:
    return repr(sorted(values.items()))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values under dotted names, without those in which shards may differ."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if f"{prefix}{name}" in _MAY_DIFFER:
            continue
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat


# The digest of the rows and the served model are compared instead of the fields' and model's names.
_MAY_DIFFER = frozenset({"shard", "input", "requested_model", "model.engine_version"})
