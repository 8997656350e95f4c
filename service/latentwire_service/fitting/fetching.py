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
_WEB = frozenset({"http", "https"})
_CONNECT_TIMEOUT_S = 30.0
# The longest silence, not the time of a whole file.
_READ_TIMEOUT_S = 60.0
_NO_COPY = "DATASET: cannot be copied to this machine"
_BROKEN = "the connection broke before all bytes had arrived"
# Names of classes, because the libraries that define them may not be installed. The first match of
# an error's classes, from the most special one on, decides.
_REASONS = {
    "FileNotFoundError": "no such file or folder",
    "PermissionError": "access is denied",
    "ServerTimeoutError": "the store does not answer in time",
    "TimeoutError": "the store does not answer in time",
    "ClientConnectorError": "the store cannot be reached",
    "ClientConnectionError": _BROKEN,
    "ClientPayloadError": _BROKEN,
    "ConnectionError": "the store cannot be reached",
    "ValueError": "the URL, or a setting of its library, is not valid",
}
_STATUSES = {
    401: "access is denied",
    403: "access is denied",
    404: "no such file or folder",
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
    with _temporary_directory() as directory:
        try:
            # Libraries know their schemes in small letters only.
            _copy(scheme, scheme + given[len(scheme) :], split, directory, say)
        except BridgeError:
            raise
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            hint = f'pip install "latentwire[{extra}]"' if extra else str(error)
            raise BridgeError(f"DATASET: {scheme}:// needs another package", hint) from error
        except Exception as error:
            # The libraries behind the URLs have no common class of errors.
            raise BridgeError(f"{_NO_COPY}: {_reason(error)}") from error
        yield directory


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="latentwire-", ignore_cleanup_errors=True)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise BridgeError(
            f"{_NO_COPY}: no temporary directory can be made: {why}",
            "TMPDIR names another place for it.",
        ) from error
    with directory as path:
        yield Path(path)


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return _STATUSES.get(status, f"the store answered with status {status}")
    names = (kind.__name__ for kind in type(error).__mro__)
    known = next((_REASONS[name] for name in names if name in _REASONS), None)
    return known or (os.strerror(number) if number else type(error).__name__)


def _copy(
    scheme: str, url: str, split: str | None, directory: Path, say: Callable[[str], None]
) -> None:
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise BridgeError(f"DATASET: no package for URLs that begin with {scheme}://") from error
    filesystem, root = fsspec.core.url_to_fs(url, **_options(scheme))
    root = str(root).rstrip("/")
    in_folder = _below(root, DATA_NAME)
    if filesystem.isfile(root):
        wanted = {root: DATA_NAME}
    elif split is None and filesystem.isfile(in_folder):
        wanted = {in_folder: DATA_NAME}
    else:
        wanted = _split_files(filesystem, root, split)
    if not wanted:
        raise BridgeError(
            "DATASET: holds neither data.parquet nor files of splits in data",
            "Give the output directory of latentwire collect, or its data.parquet.",
        )
    sizes = [filesystem.info(path)["size"] for path in wanted]
    # A web server need not say how long a file is.
    size = "" if None in sizes else f" ({sum(map(int, sizes)):,} bytes)"
    say(f"copying {len(wanted)} files{size} of the dataset to this machine")
    for path, name in wanted.items():
        (directory / name).parent.mkdir(exist_ok=True)
        filesystem.get_file(path, str(directory / name))


def _options(scheme: str) -> dict[str, Any]:
    """Return the options of a file system; what the user has configured for `fsspec` wins."""
    if scheme not in _WEB:
        return {}
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S
    )
    configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, **configured}}


def _below(root: str, name: str) -> str:
    """Return the path of a file in a folder; a query of the folder's stands behind the name."""
    is_web = root.partition("://")[0] in _WEB
    folder, mark, query = root.partition("?") if is_web else (root, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def _split_files(filesystem: Any, root: str, split: str | None) -> dict[str, str]:
    """Name the files of splits below a folder, and where their copies go.

    All of them where the wanted split is not there: the reader then says which there are.
    """
    for folder in (_below(root, DATA_DIRECTORY), root):
        if not filesystem.isdir(folder):
            continue
        names = [PurePosixPath(path).name for path in filesystem.ls(folder, detail=False)]
        found = {name: split_of(name) for name in names if split_of(name) is not None}
        chosen = [name for name, one in found.items() if one == split] or list(found)
        if chosen:
            return {_below(folder, name): f"{DATA_DIRECTORY}/{name}" for name in chosen}
    return {}
