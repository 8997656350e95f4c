"""Resolution of the addresses that the user gives: one base URL per replica."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

import httpx

from latentwire import InvalidArgumentError
from latentwire.http_environment import proxy_for
from latentwire_batch.errors import UsageError

# A platform that scales a service changes the addresses of its name.
DISCOVERY_INTERVAL_S = 10.0


async def resolve_endpoints(addresses: Iterable[str]) -> list[str]:
    """Return one base URL per replica, in order, without duplicates.

    A plain-HTTP name with several addresses, as a container platform gives a scaled service, stands
    for all of them. HTTPS names stay as they are, because a certificate is for a name. So do names
    that are reached through a proxy, which resolves them itself.

    Raises:
        UsageError: when an address is not an HTTP URL.
    """
    resolved: list[str] = []
    for address in addresses:
        resolved += await _expand(parse_address(address))
    return list(dict.fromkeys(resolved))


def parse_address(address: str) -> httpx.URL:
    """Read an address; raises UsageError when it is not an HTTP URL."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UsageError("--replica: must be like http://host:8000") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("--replica: must be like http://host:8000")
    return url


async def discover(
    addresses: Iterable[str],
    started: Iterable[str],
    add: Callable[[str], None],
    interval_s: float = DISCOVERY_INTERVAL_S,
) -> None:
    """Resolve the names again and again, and report new endpoints. Runs until cancelled.

    A name that had one address at the start, or none yet, is a replica by that name. The first
    address that the name has later belongs to that replica and is not reported.

    Args:
        addresses: as `resolve_endpoints` takes them.
        started: the result of `resolve_endpoints` for them.
        add: called with the base URL of each new endpoint.
        interval_s: pause between two rounds, in seconds.
    """
    urls = [url for url in map(parse_address, addresses) if _is_resolved_here(url)]
    known = set(started)
    by_name = {url for url in urls if str(url) in known}
    while True:
        for url in urls:
            endpoints = [str(url.copy_with(host=host)) for host in await _hosts(url)]
            if endpoints and url in by_name:
                by_name.remove(url)
                known.add(endpoints[0])
            for endpoint in endpoints:
                if endpoint not in known:
                    known.add(endpoint)
                    add(endpoint)
        await asyncio.sleep(interval_s)


def _is_resolved_here(url: httpx.URL) -> bool:
    try:
        return url.scheme == "http" and proxy_for(url) is None
    except InvalidArgumentError as error:
        raise UsageError(str(error)) from error


async def _expand(url: httpx.URL) -> list[str]:
    hosts = await _hosts(url) if _is_resolved_here(url) else []
    if len(hosts) < 2:
        # A name that does not resolve yet is kept: every connection tries it again.
        return [str(url)]
    return [str(url.copy_with(host=host)) for host in hosts]


async def _hosts(url: httpx.URL) -> list[str]:
    """Return the addresses of a name, sorted; none when it does not resolve."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(url.host, url.port or 80, type=socket.SOCK_STREAM)
    except OSError:
        return []
    # One address family only, so that a dual-stack host does not count as two replicas.
    family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else None
    return sorted({str(entry[4][0]) for entry in found if family in (None, entry[0])})
