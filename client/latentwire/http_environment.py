"""HTTP settings of the environment: proxies and certificates, for one base URL.

httpx reads the same variables, but for all addresses at once: a proxy that it cannot use fails
requests that need no proxy, and requests to this machine go to the proxy, too. So this module
decides for the one address of a client, and httpx reads no variable. It sends nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.request import getproxies

import httpx

from latentwire.errors import InvalidArgumentError

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_SOCKS_SCHEMES = ("socks5", "socks5h")
_HOST = re.compile(r"[^\s\[\]/%]+")
_PROXY_SCHEMES = ("http", "https", *_SOCKS_SCHEMES)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine: `localhost`, `127.0.0.1`, `::1`, `0.0.0.0`."""
    address = _ip_address(host)
    if address is None:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    # A connection to "any address" reaches this machine.
    return address.is_loopback or address.is_unspecified


def proxy_for(url: httpx.URL, environ: Mapping[str, str] = os.environ) -> httpx.Proxy | None:
    """Return the proxy for an address; None for a direct connection.

    Loopback addresses and those of NO_PROXY are direct. HTTP_PROXY, HTTPS_PROXY or ALL_PROXY name
    the proxy of the others; names in lower case win.

    Args:
        url: base URL of a service.
        environ: names the variable in error messages.

    Raises:
        InvalidArgumentError: when the variable holds no usable proxy; the text names it.
    """
    if is_loopback(url.host):
        return None
    proxies = getproxies()
    scheme = next((scheme for scheme in (url.scheme, "all") if proxies.get(scheme)), None)
    if scheme is None or is_excepted(url, proxies.get("no", "")):
        return None
    variable = _name_of(f"{scheme}_proxy", environ)
    value = proxies[scheme].strip()
    try:
        proxy_url = httpx.URL(value if "://" in value else f"http://{value}")
    except httpx.InvalidURL:
        _refuse(variable, "is not a URL like http://proxy:3128")
    if proxy_url.scheme in ("socks", "socks4", "socks4a"):
        _refuse(variable, f"{proxy_url.scheme} is not supported; use socks5 or socks5h")
    is_usable = _HOST.fullmatch(proxy_url.host) and 0 < (proxy_url.port or 1) < 1 << 16
    if proxy_url.scheme not in _PROXY_SCHEMES or not is_usable:
        _refuse(variable, "is not a URL like http://proxy:3128")
    if proxy_url.scheme in _SOCKS_SCHEMES and find_spec("socksio") is None:
        _refuse(
            variable,
            'a SOCKS proxy needs the package socksio: pip install "httpx[socks]". Or list the '
            "service's host in NO_PROXY",
        )
    context = tls_context(environ) if proxy_url.scheme == "https" else None
    return httpx.Proxy(proxy_url, ssl_context=context)


def is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Whether NO_PROXY lists an address.

    Entries are separated by commas or spaces. An entry is `*`, a name (with or without a leading
    dot or `*.`; it stands for its subdomains, too), an IP address or a network like `10.0.0.0/8`;
    a port restricts it. An entry that is none of these is ignored.

    Args:
        url: base URL of a service.
        no_proxy: value of the variable.
    """
    port = url.port or (443 if url.scheme == "https" else 80)
    return any(_matches(entry, url.host, port) for entry in re.split(r"[\s,;]+", no_proxy) if entry)


def tls_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Return the certificates to trust: those of SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.

    Raises:
        InvalidArgumentError: when a variable names no usable file; the text names the variable.
    """
    cert_file, cert_dir = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    key_log = environ.get("SSLKEYLOGFILE")
    if key_log:
        try:
            Path(key_log).open("ab").close()
        except OSError as error:
            _refuse("SSLKEYLOGFILE", f"the file cannot be written: {error.strerror}")
    if not cert_file and cert_dir:
        if not Path(cert_dir).is_dir():
            _refuse("SSL_CERT_DIR", "is not a directory")
        return ssl.create_default_context(capath=cert_dir)
    if not cert_file:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=cert_file)
    except ssl.SSLError:
        _refuse("SSL_CERT_FILE", "the file holds no certificates in PEM form")
    except OSError as error:
        _refuse("SSL_CERT_FILE", f"the file cannot be read: {error.strerror}")


def context_for(url: httpx.URL) -> ssl.SSLContext:
    """Return the TLS context of a client; raises like `tls_context` for an https address."""
    # A plain-HTTP client needs no certificates: this context trusts none, and costs nothing.
    return tls_context() if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    pattern, pattern_port = _split_port(entry.rpartition("://")[2].rstrip("/"))
    if pattern_port not in ("", str(port)):
        return False
    address = _ip_address(host)
    if address is not None:
        return _network_holds(pattern, address)
    name = host.rstrip(".").lower()
    suffix = pattern.removeprefix("*").strip(".").lower()
    return bool(suffix) and (name == suffix or name.endswith(f".{suffix}"))


def _split_port(entry: str) -> tuple[str, str]:
    """Split `host:port`, `[address]:port` or one without a port; an IPv6 address has colons."""
    if entry.startswith("["):
        host, _, port = entry[1:].partition("]")
        return host, port.removeprefix(":")
    host, _, port = entry.partition(":")
    return (entry, "") if ":" in port else (host, port)


def _network_holds(network: str, address: _IpAddress) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _ip_address(host: str) -> _IpAddress | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return _short_ipv4(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _short_ipv4(host: str) -> _IpAddress | None:
    """Read the forms that the system's resolver accepts, such as `127.1`."""
    if not host[:1].isdigit():
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _name_of(variable: str, environ: Mapping[str, str]) -> str:
    for name in (variable, variable.upper()):
        if environ.get(name):
            return name
    return variable.upper() if sys.platform == "linux" else "the system's proxy settings"


def _refuse(variable: str, reason: str) -> NoReturn:
    raise InvalidArgumentError(variable, f"{variable}: {reason}")
