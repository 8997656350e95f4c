"""URLs as text: what is one, and how one is shown. Opens nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from shlex import quote
from urllib.parse import unquote

# At least two characters: `C://` begins with a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL_SCHEMES = frozenset({"file", "local"})
_USER = re.compile(r"(://)[^/]*@")
# What is meant as a URL, and is the name of a directory here.
_ONE_SLASH = re.compile(r"(s3a?|gcs|gs|hf|https?):/?(?!/)", re.IGNORECASE)
# Web servers, texts, repositories and archives.
_READ_ONLY = frozenset({"http", "https", "data", "git", "github", "gist", "reference"})
_READ_ONLY |= {"zip", "tar", "libarchive"}
_QUERY = re.compile(r"[?#].*", re.DOTALL)
# Here both characters are part of a name, as in a directory.
_WITHOUT_QUERY = frozenset({"s3", "s3a", "gs", "gcs", "hf", "memory"})


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL in small letters; None for a path."""
    match = _SCHEME.match(text)
    return None if match is None else match[1].lower()


def is_url(text: str) -> bool:
    """Whether a text is a URL of another place than this machine's own file system."""
    scheme = scheme_of(text)
    return scheme is not None and scheme not in _LOCAL_SCHEMES


def lacks_slash(text: str) -> bool:
    """Whether a text looks like a URL that lost a slash, like `s3:/bucket`."""
    return _ONE_SLASH.match(text) is not None


def is_strange(text: str) -> bool:
    """Whether a text has a URL in it, as chains of `fsspec` do, and neither is one nor a file."""
    return "://" in text and scheme_of(text) is None and not os.path.exists(text)


def is_read_only(url: str) -> bool:
    """Whether what is behind a URL can be read and never written."""
    return scheme_of(url) in _READ_ONLY


def local_path(text: str) -> Path | None:
    """Return the path that a text stands for, also as `file:///path`; None for another URL."""
    if is_url(text):
        return None
    scheme = scheme_of(text)
    if scheme is None:
        return Path(text)
    rest = text[len(scheme) + len("://") :]
    return Path(unquote(rest.removeprefix("localhost")))


def split_query(url: str) -> tuple[str, str]:
    """Split a URL into what names the file, and the query and fragment; "" where it has none."""
    match = None if scheme_of(url) in _WITHOUT_QUERY else _QUERY.search(url)
    return (url, "") if match is None else (url[: match.start()], match[0])


def below(url: str, name: str) -> str:
    """Return the URL of a file in a folder; a query of the folder's goes for its files, too."""
    folder, query = split_query(url)
    return f"{folder.rstrip('/')}/{name}{query}"


def parent_of(url: str) -> str:
    """Return the URL of the folder that holds a file or folder."""
    base, query = split_query(url)
    return base.rstrip("/").rpartition("/")[0] + query


def shown(url: str) -> str:
    """Return a URL for a message: without a user, a password and a query, which may hold keys."""
    return _USER.sub(r"\1", split_query(url)[0]).rstrip("/")


def shown_name(url: str) -> str:
    """Return the last part of a URL's path."""
    return PurePosixPath(shown(url)).name


def shown_path(place: object, num_parts: int = 1) -> str:
    """Name a path or a place behind a URL in a notice, which holds no absolute path.

    Args:
        place: whose text names it.
        num_parts: how much to show of the end of a path outside the current directory.
    """
    if not isinstance(place, Path) or not place.is_absolute():
        return str(place)
    return _from_here(place) or f".../{'/'.join(place.parts[1:][-num_parts:])}"


def as_argument(place: object, stands_for: str) -> str:
    """Quote a path or a place behind a URL for a shell, as an argument that is no flag.

    Args:
        place: whose text names it.
        stands_for: what to write in place of a path that a notice cannot hold.
    """
    text = str(place)
    if isinstance(place, Path) and place.is_absolute():
        text = _from_here(place) or stands_for
    return quote(f"./{text}" if text.startswith("-") else text)


def _from_here(path: Path) -> str | None:
    """Return a path from the current directory; None outside it, or where users would be named."""
    try:
        here = Path.cwd()
        if here in Path.home().resolve().parents:
            return None
        return str(path.relative_to(here))
    except (OSError, RuntimeError, ValueError):
        # There is no such directory any more, the user has no home, or the path is elsewhere.
        return None
