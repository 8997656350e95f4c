"""Who may call, and how much they may send: settings made into what the middleware needs."""

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
    """The settings say nothing that can be enforced."""


class ApiKeys:
    """Keys that callers may show. Holds their digests only.

    Args:
        keys: printable ASCII without spaces; none: everybody may call.

    Raises:
        PolicyError: a key cannot be sent in a header.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests: list[bytes] = []
        for key in keys:
            # The message leaves the key out: it ends up in logs.
            if not key or not all("!" <= character <= "~" for character in key):
                raise PolicyError("an API key must be printable ASCII, without spaces")
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._digests)

    def caller_of(self, authorization: bytes) -> str | None:
        """Return a name for whose key is shown in an `Authorization` header; None for nobody's.

        It takes as long for a key that is nearly right as for one that is not at all: digests of
        one length are compared, in constant time, with each key there is.
        """
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        # A part of the digest names the key in logs, and does not give it away.
        return f"key-{digest.hex()[:8]}" if any(matches) else None


@dataclass(frozen=True, slots=True)
class Policy:
    """What requests have to keep to before a route sees them.

    Attributes:
        api_keys: one of them has to be shown where there are any.
        is_metrics_public: `/metrics` needs none.
        allowed_hosts: values of the `Host` header, without port; None: any.
        cors_origins: web origins whose pages may call.
        max_body_bytes: larger bodies are answered 413.
        body_timeout_s: bodies that take longer are answered 408.
        request_timeout_s: most that a request may take; None: as long as it needs.
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
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise PolicyError(f"--api-key-file cannot be read: {reason}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        # Whoever names a file wants keys to be asked for: an empty one must not open the door.
        raise PolicyError("--api-key-file holds no key")
    return keys


def _allowed_hosts(settings: Settings) -> frozenset[str] | None:
    if settings.allowed_host:
        return frozenset(name.lower() for name in settings.allowed_host)
    # A page in a browser can have its own name point to 127.0.0.1, and call with that name.
    return _LOOPBACK_NAMES | {settings.host.lower()} if _is_loopback(settings.host) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
