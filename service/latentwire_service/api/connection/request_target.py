"""Targets of requests in absolute form (`GET http://host/path`), which every server must accept.

Callers that take the service for a proxy send them. RFC 9112, section 3.2.2: the host of the
target replaces the `Host` header.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import Scope

_ABSOLUTE = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)


def origin_form(scope: Scope) -> Scope:
    """Return the scope of the same request with its target as a path.

    Args:
        scope: of an HTTP request; one with a path is returned as it is.
    """
    matched = _ABSOLUTE.fullmatch(scope["raw_path"])
    if matched is None:
        return scope
    host, raw_path = matched[1], matched[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "headers": [(b"host", host), *headers],
    }
