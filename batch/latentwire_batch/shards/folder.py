"""The folder that the shards of one collection share: a folder for each, and their common date."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentwire_batch.dataset.files import read_manifest_json
from latentwire_batch.dispatch.seeds import ROW_SEED_BITS
from latentwire_batch.errors import UsageError, storage_error
from latentwire_batch.locations import Folder, Place, RemotePath
from latentwire_batch.locations.errors import output_errors
from latentwire_batch.output.durable import read_json
from latentwire_batch.output.layout import CLAIM_NAME, MANIFEST_NAME
from latentwire_batch.shards.shard import FOLDER_PATTERN, Shard
from latentwire_batch.tasks.rows import DataIdentity

MERGED = "merged"
"""In the manifest of a merged dataset, it says of what."""
_AGREEMENT_NAME = "shards.json"
_HEX_BITS = 4


def shards_in(folder: Place) -> dict[Place, Shard]:
    """Find the folders of shards in a folder, in the order of their numbers."""
    paths: list[Place] = sorted(folder.glob(FOLDER_PATTERN), key=lambda path: path.name)
    found = {path: Shard.of_folder(path.name) for path in paths}
    return {path: shard for path, shard in found.items() if shard is not None and path.is_dir()}


def refuse_mixture(folder: Place, shard: Shard | None, replaces: bool) -> None:
    """Refuse to collect next to what is no part of the same collection.

    Args:
        folder: the settings' `output_dir`.
        shard: to be collected; None: all rows.
        replaces: whether a finished dataset in the folder itself will be another one.

    Raises:
        UsageError: when the folder holds shards of another number, or all rows where a shard is
            wanted, or the other way round.
    """
    with output_errors("cannot be read"):
        _refuse_mixture(folder, shard, replaces)


def _refuse_mixture(folder: Place, shard: Shard | None, replaces: bool) -> None:
    # An unfinished run has its settings at the same place in a directory and behind a URL.
    manifest_file, settings_file = folder / MANIFEST_NAME, folder / CLAIM_NAME
    if folder.exists() and not folder.is_dir():
        raise UsageError("--output-dir: is not a directory")
    unfinished = read_json(settings_file)
    if shard is None:
        if unfinished is not None and MERGED in unfinished:
            raise UsageError(
                "--output-dir: holds an unfinished merge, which latentwire merge completes; to "
                "collect, name another directory"
            )
        is_own = manifest_file.exists() or settings_file.exists()
        if replaces and MERGED in (read_manifest_json(folder) or ()):
            # The shards, if they are here, could not be collected next to what replaces it.
            is_own = False
        if not is_own and shards_in(folder):
            raise UsageError(
                "--output-dir: holds shards, which latentwire merge joins; to collect all rows in "
                "one run, name another directory"
            )
        return
    manifest = read_json(manifest_file)
    if any(found is not None and MERGED not in found for found in (manifest, unfinished)):
        raise UsageError(
            f"--output-dir: holds a collection of all rows, not of shards; --shard none continues "
            f"it, and another directory takes shard {shard}"
        )
    counts = {other.count for other in shards_in(folder).values()} - {shard.count}
    if counts:
        count = min(counts)
        raise UsageError(
            f"--output-dir: holds shards of {count}, and this is shard {shard}; --shard /{count} "
            f"or I/{count} collects one of those, and another directory takes this one"
        )


def seed_of(data: DataIdentity) -> int:
    """Return the dataset seed of shards that were given none: all of one input have the same."""
    digits = ROW_SEED_BITS // _HEX_BITS + 1
    return int(data.sha256[:digits], 16) & ((1 << ROW_SEED_BITS) - 1)


def agree_on_date(folder: Place, shard: Shard, data: DataIdentity, today: str) -> str:
    """Return the date of the shards in a folder: that of the first one to start.

    Args:
        folder: the settings' `output_dir`, which is made if it is missing. See `Folder.create` for
            URLs behind which two shards that start within the same moment may miss each other.
        shard: of this run.
        data: of the collection; a date that was noted for other data is replaced.
        today: as ISO 8601.

    Raises:
        StorageError: when the folder cannot be written.
    """
    wanted = {"shards": shard.count, "data": data.sha256, "date": today}
    if isinstance(folder, RemotePath):
        return _agree_remotely(folder, wanted)
    path = folder / _AGREEMENT_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        noted = read_json(path)
        if noted is None or any(noted.get(name) != wanted[name] for name in ("shards", "data")):
            noted = _noted_first(path, wanted, replaces=noted is not None)
    except OSError as error:
        raise storage_error("cannot be written", error) from error
    return str(noted.get("date", today))


def _agree_remotely(folder: RemotePath, wanted: dict[str, Any]) -> str:
    with output_errors("cannot be written"):
        noted = read_json(folder / _AGREEMENT_NAME)
        if noted is None or any(noted.get(name) != wanted[name] for name in ("shards", "data")):
            place, data = Folder(folder.url), json.dumps(wanted).encode()
            if noted is None:
                # Another shard may be faster: its note counts.
                place.create(_AGREEMENT_NAME, data)
            else:
                place.write(_AGREEMENT_NAME, data)
            noted = read_json(folder / _AGREEMENT_NAME) or wanted
    return str(noted.get("date", wanted["date"]))


def _noted_first(path: Path, wanted: dict[str, Any], replaces: bool) -> dict[str, Any]:
    """Write the note unless another process was faster; return the note that is there."""
    own = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        own.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
        if replaces:
            own.replace(path)
        else:
            # A link appears whole, and only one process can make it, also on NFS.
            try:
                os.link(own, path)
            except FileExistsError:
                pass
            except OSError:
                # A file system without links.
                own.replace(path)
        return read_json(path) or wanted
    finally:
        with suppress(OSError):
            own.unlink()
