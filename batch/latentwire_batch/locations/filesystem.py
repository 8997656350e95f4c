"""From a URL to the file system that serves it, with a hint where a package is missing."""

from __future__ import annotations

import logging
from typing import Any

from latentwire_batch.errors import LocationError
from latentwire_batch.locations import web
from latentwire_batch.locations.errors import place_error
from latentwire_batch.locations.urls import scheme_of

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
# Their URLs hold a bucket where others hold a host, and no user in front of it.
_BUCKETS = frozenset(_EXTRAS) - {"hf"}


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open the file system of a URL, with the settings of its library's own environment.

    Args:
        url: like `s3://bucket/folder`; a path stands for a local folder.

    Returns:
        An `fsspec.AbstractFileSystem`, and the URL's path in it.

    Raises:
        LocationError: when the scheme is unknown, its package is not installed, or the URL is
            malformed.
    """
    import fsspec

    scheme = scheme_of(url) or "file"
    if scheme_of(url) is not None:
        # Libraries know their schemes in small letters only.
        url = f"{scheme}{url[len(scheme) :]}"
    _refuse_unusable(scheme, url)
    try:
        fsspec.get_filesystem_class(scheme)
        filesystem, path = _opened(fsspec, scheme, url)
    except LocationError:
        raise
    except ImportError as error:
        raise LocationError(_missing(scheme, error), True) from error
    except ValueError as error:
        raise LocationError(f"no package for URLs that begin with {scheme}://", True) from error
    if not path.strip("/"):
        raise LocationError(f"must name more than {scheme}://", True)
    return filesystem, path.rstrip("/")


def _refuse_unusable(scheme: str, url: str) -> None:
    if scheme in web.SCHEMES:
        web.refuse_malformed(url)
    if scheme not in _EXTRAS:
        return
    first, _, rest = url.partition("://")[2].partition("/")
    # On the hub, `@` alone stands in front of a revision.
    if "@" in first and (scheme in _BUCKETS or ":" in first):
        raise LocationError(
            "must not hold a user or a key; the environment gives them to the library", True
        )
    if not first and rest.strip("/"):
        raise LocationError(f"names no bucket between {scheme}:// and the next /", True)
    if {".", ".."} & {first, *rest.split("/")}:
        # A store takes them for names, and most tools do not reach such a name.
        raise LocationError("must not hold . or .. between slashes", True)


def _opened(fsspec: Any, scheme: str, url: str) -> tuple[Any, str]:
    # It warns where it cannot ask for the kind of a bucket, and lists what is missing.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {}
    if scheme in web.SCHEMES:
        configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
        options["client_kwargs"] = web.client_options(configured)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError:
        raise
    except Exception as error:
        raise place_error(error) from error
    return filesystem, str(path)


def _missing(scheme: str, error: ImportError) -> str:
    if scheme in _EXTRAS:
        return (
            f"{scheme}:// needs the {_EXTRAS[scheme]} extra: "
            f'pip install "latentwire[{_EXTRAS[scheme]}]"'
        )
    # Written by fsspec: it names the package.
    return f"{scheme}:// needs another package: {error}"
