"""Access rules: which clients may call and how much they may send, read from the settings."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire_service.settings import Settings

_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|null")
_MAX_SHOWN_CHARS = 100
_UNSENDABLE_KEY = "a key must be printable ASCII without spaces"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class PolicyError(Exception):
    """The settings cannot be enforced; the text states the reason."""


class ApiKeys:
    """The valid API keys, which may be replaced at any time. Holds only their digests.

    Args:
        keys: printable ASCII without spaces; empty: every client may call.

    Raises:
        PolicyError: a key cannot be sent in a header.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = _digests(keys)

    def replace(self, keys: Iterable[str]) -> None:
        """Accept these keys instead. May be called on any thread.

        Raises:
            PolicyError: a key cannot be sent in a header; the present ones stay valid.
        """
        self._digests = _digests(keys)

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


def _digests(keys: Iterable[str]) -> list[bytes]:
    digests = []
    for key in keys:
        # The message ends up in logs, so it must not hold the key.
        if not _can_be_sent(key):
            raise PolicyError(_UNSENDABLE_KEY)
        digests.append(hashlib.sha256(key.encode()).digest())
    return digests


def _can_be_sent(key: str) -> bool:
    return bool(key) and all("!" <= character <= "~" for character in key)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a request must satisfy before a route sees it.

    Attributes:
        api_keys: a request must carry one of them, if there are any.
        is_metrics_public: `/metrics` needs no key.
        allowed_hosts: accepted values of the `Host` header, without port, as `canonical_host`
            spells them; None: any.
        cors_origins: web origins whose pages may call.
        max_body_bytes: most bytes of a request body; a larger one is answered 413. None: what the
            loaded model needs.
        body_timeout_s: seconds in which a body must arrive; a slower one is answered 408.
        request_timeout_s: most seconds that a request may take; None: no limit.
    """

    api_keys: ApiKeys
    is_metrics_public: bool
    allowed_hosts: frozenset[str] | None
    cors_origins: Sequence[str]
    max_body_bytes: int | None
    body_timeout_s: float
    request_timeout_s: float | None


def policy_of(settings: Settings) -> Policy:
    """Read the policy from the settings and the key file.

    Raises:
        PolicyError: the file is unreadable or empty, or a key, a host name or an origin cannot be
            used.
    """
    for origin in settings.cors_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise PolicyError(
                f"--cors-origin: {_shown(origin)!r} matches no page: an origin is "
                "scheme://host or scheme://host:port, without a path"
            )
    return Policy(
        api_keys=ApiKeys(all_keys(settings)),
        is_metrics_public=settings.metrics_public,
        allowed_hosts=_allowed_hosts(settings),
        cors_origins=settings.cors_origin,
        max_body_bytes=None if settings.max_body_bytes == "auto" else settings.max_body_bytes,
        body_timeout_s=settings.body_timeout,
        request_timeout_s=settings.request_timeout,
    )


def all_keys(settings: Settings) -> list[str]:
    """Return the keys of the settings and of the key file.

    Raises:
        PolicyError: the file is unreadable or empty, or a key cannot be sent in a header.
    """
    given = [key.get_secret_value() for key in settings.api_key]
    read = [] if settings.api_key_file is None else _read_keys(settings.api_key_file)
    for flag, keys in (("--api-key", given), ("--api-key-file", read)):
        if not all(map(_can_be_sent, keys)):
            raise PolicyError(f"{flag}: {_UNSENDABLE_KEY}")
    return given + read


def is_open_to_all(settings: Settings) -> bool:
    """Return whether other machines can reach the service, and it has no keys."""
    has_keys = bool(settings.api_key) or settings.api_key_file is not None
    return settings.listen_fd is None and not has_keys and not _is_loopback(settings.host)


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise PolicyError(f"--api-key-file: cannot be read: {reason}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        # A named file means that keys are wanted: an empty one must not open the service to all.
        raise PolicyError("--api-key-file: holds no key")
    return keys


def _allowed_hosts(settings: Settings) -> frozenset[str] | None:
    if settings.allowed_host:
        return frozenset(map(_checked_host, settings.allowed_host))
    if not _is_loopback(settings.host):
        return None
    # DNS rebinding: a web page can point its own name at 127.0.0.1 and call with that name.
    return _LOOPBACK_NAMES | {canonical_host(settings.host)}


def canonical_host(name: str) -> str:
    """Return the one spelling of a host: lower case, no dot at the end, IPv6 short, in brackets."""
    return _canonical_address(name) or name.lower().removesuffix(".")


def _canonical_address(name: str) -> str | None:
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _checked_host(name: str) -> str:
    """Return a name of `--allowed-host` in its one spelling.

    Raises:
        PolicyError: no `Host` header can match the name.
    """
    if _canonical_address(name) is None and not _HOST_NAME.fullmatch(name):
        raise PolicyError(
            f"--allowed-host: {_shown(name)!r} matches no Host header: give a name or an address "
            "without scheme, port, path or wildcard"
        )
    return canonical_host(name)


def _shown(text: str) -> str:
    """Return the start of a text, without a user and a password and without a query."""
    place = text.partition("?")[0]
    scheme, separator, rest = place.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"[:_MAX_SHOWN_CHARS]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
