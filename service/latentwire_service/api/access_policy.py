"""Access rules: which clients may call and how much they may send, read from the settings."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire_service.settings import Settings

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class PolicyError(Exception):
    """The settings cannot be enforced; the text says why."""


class ApiKeys:
    """The valid API keys. Holds only their digests.

    Args:
        keys: printable ASCII without spaces; empty: every client may call.

    Raises:
        PolicyError: a key cannot be sent in a header.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests: list[bytes] = []
        for key in keys:
            # The message ends up in logs, so it must not hold the key.
            if not key or not all("!" <= character <= "~" for character in key):
                raise PolicyError("an API key must be printable ASCII, without spaces")
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._digests)

    def caller_of(self, authorization: bytes) -> str | None:
        """Return the name of the key in an `Authorization` header; None if it is not valid.

        The time does not depend on how much of a key is right: digests of equal length are compared
        in constant time, and with every key.
        """
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        # A part of the digest names the key in logs without revealing it.
        return f"key-{digest.hex()[:8]}" if any(matches) else None


@dataclass(frozen=True, slots=True)
class Policy:
    """What a request must satisfy before a route sees it.

    Attributes:
        api_keys: a request must carry one of them, if there are any.
        is_metrics_public: `/metrics` needs no key.
        allowed_hosts: accepted values of the `Host` header, without port; None: any.
        cors_origins: web origins whose pages may call.
        max_body_bytes: most bytes of a request body; a larger one is answered 413.
        body_timeout_s: seconds in which a body must arrive; a slower one is answered 408.
        request_timeout_s: most seconds that a request may take; None: no limit.
    """

    api_keys: ApiKeys
    is_metrics_public: bool
    allowed_hosts: frozenset[str] | None
    cors_origins: Sequence[str]
    max_body_bytes: int
    body_timeout_s: float
    request_timeout_s: float | None


def policy_of(settings: Settings) -> Policy:
    """Read the policy from the settings and the key file.

    Raises:
        PolicyError: the file is unreadable or empty, or a key cannot be used.
    """
    keys = [key.get_secret_value() for key in settings.api_key]
    if settings.api_key_file is not None:
        keys += _read_keys(settings.api_key_file)
    return Policy(
        api_keys=ApiKeys(keys),
        is_metrics_public=settings.metrics_public,
        allowed_hosts=_allowed_hosts(settings),
        cors_origins=settings.cors_origin,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout,
        request_timeout_s=settings.request_timeout,
    )


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise PolicyError(f"--api-key-file cannot be read: {reason}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        # A named file means that keys are wanted: an empty one must not open the service to all.
        raise PolicyError("--api-key-file contains no key")
    return keys


def _allowed_hosts(settings: Settings) -> frozenset[str] | None:
    if settings.allowed_host:
        return frozenset(name.lower() for name in settings.allowed_host)
    # DNS rebinding: a web page can point its own name at 127.0.0.1 and call with that name.
    return _LOOPBACK_NAMES | {settings.host.lower()} if _is_loopback(settings.host) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
