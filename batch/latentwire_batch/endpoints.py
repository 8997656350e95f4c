"""From the addresses a person gives to one address per replica."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import httpx

from latentwire_batch.errors import UsageError


async def resolve_endpoints(addresses: Iterable[str]) -> list[str]:
    """Give one base URL per replica, in order, without repetitions.

    A plain-HTTP name with several addresses, as a container platform gives a scaled service, stands
    for all of them. HTTPS names are kept: a certificate is for a name.

    Raises:
        UsageError: when an address is not an HTTP URL.
    """
    resolved: list[str] = []
    for address in addresses:
        resolved += await _expand(_parse(address))
    return list(dict.fromkeys(resolved))


def _parse(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UsageError("--replica: must be like http://host:8000") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("--replica: must be like http://host:8000")
    return url


async def _expand(url: httpx.URL) -> list[str]:
    if url.scheme != "http":
        return [str(url)]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(url.host, url.port or 80, type=socket.SOCK_STREAM)
    except OSError:
        # Not known yet: the name is tried again with every connection.
        return [str(url)]
    # One family only: a dual-stack host would otherwise count as two replicas.
    family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else None
    hosts = sorted({str(entry[4][0]) for entry in found if family in (None, entry[0])})
    if len(hosts) == 1:
        return [str(url)]
    return [str(url.copy_with(host=host)) for host in hosts]
