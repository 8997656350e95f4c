"""Datasets behind URLs, copied to this machine for a fit, which reads them many times.

`fsspec` opens the URLs and is imported when the first one is used.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from latentwire.split_files import DATA_DIRECTORY, split_of
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.samples import DATA_NAME

# At least two characters: `C://` begins with a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL = frozenset({"file", "local"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
_REASONS = {
    FileNotFoundError: "no such file or folder",
    PermissionError: "access is denied",
    TimeoutError: "the store does not answer in time",
    ConnectionError: "the store cannot be reached",
}


@contextmanager
def local_dataset(given: str, split: str | None, say: Callable[[str], None]) -> Iterator[Path]:
    """Yield a dataset as a path of this machine; a copy lives as long as the context.

    Args:
        given: a path or a URL.
        split: the one to copy; None: all.
        say: told about the copy.

    Raises:
        BridgeError: when it cannot be copied. The message holds no part of the URL but its scheme.
    """
    match = _SCHEME.match(given)
    scheme = None if match is None else match[1].lower()
    if scheme is None or scheme in _LOCAL:
        rest = "" if match is None else given[match.end() :].removeprefix("localhost")
        yield Path(given) if match is None else Path(unquote(rest))
        return
    with tempfile.TemporaryDirectory(prefix="latentwire-") as directory:
        try:
            # Libraries know their schemes in small letters only.
            _copy(scheme + given[len(scheme) :], split, Path(directory), say)
        except BridgeError:
            raise
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            hint = f'pip install "latentwire[{extra}]"' if extra else str(error)
            raise BridgeError(f"DATASET: {scheme}:// needs another package", hint) from error
        except Exception as error:
            # The libraries behind the URLs have no common class of errors.
            known = (text for kind, text in _REASONS.items() if isinstance(error, kind))
            number = error.errno if isinstance(error, OSError) else None
            reason = next(known, os.strerror(number) if number else type(error).__name__)
            raise BridgeError(f"DATASET: cannot be copied to this machine: {reason}") from error
        yield Path(directory)


def _copy(url: str, split: str | None, directory: Path, say: Callable[[str], None]) -> None:
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except ValueError as error:
        scheme = url.partition("://")[0]
        raise BridgeError(f"DATASET: no package for URLs that begin with {scheme}://") from error
    root = str(root).rstrip("/")
    if filesystem.isfile(root):
        wanted = {root: DATA_NAME}
    elif split is None and filesystem.isfile(f"{root}/{DATA_NAME}"):
        wanted = {f"{root}/{DATA_NAME}": DATA_NAME}
    else:
        wanted = _split_files(filesystem, root, split)
    if not wanted:
        raise BridgeError(
            "DATASET: holds neither data.parquet nor files of splits in data",
            "Give the output directory of latentwire collect, or its data.parquet.",
        )
    num_bytes = sum(int(filesystem.info(path)["size"]) for path in wanted)
    say(f"copying {len(wanted)} files ({num_bytes:,} bytes) of the dataset to this machine")
    for path, name in wanted.items():
        (directory / name).parent.mkdir(exist_ok=True)
        filesystem.get_file(path, str(directory / name))


def _split_files(filesystem: Any, root: str, split: str | None) -> dict[str, str]:
    """Name the files of splits below a folder, and where their copies go.

    All of them where the wanted split is not there: the reader then says which there are.
    """
    for folder in (f"{root}/{DATA_DIRECTORY}", root):
        if not filesystem.isdir(folder):
            continue
        names = [PurePosixPath(path).name for path in filesystem.ls(folder, detail=False)]
        found = {name: split_of(name) for name in names if split_of(name) is not None}
        chosen = [name for name, one in found.items() if one == split] or list(found)
        if chosen:
            return {f"{folder}/{name}": f"{DATA_DIRECTORY}/{name}" for name in chosen}
    return {}
