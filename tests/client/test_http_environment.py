"""Proxies and certificates of the environment, for every form that people have."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx
import pytest

from latentwire import AsyncClient, Client, InvalidArgumentError
from latentwire.http_environment import is_excepted, is_loopback, proxy_for, tls_context

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "ssl_cert_file", "ssl_cert_dir", "sslkeylogfile", "request_method"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)


def proxy_of(url: str) -> str | None:
    proxy = proxy_for(httpx.URL(url))
    return None if proxy is None else str(proxy.url)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.8.9.1", "127.1"),
        *("::1", "::ffff:127.0.0.1", "0.0.0.0", "::"),
    ],
)
def test_this_machine_is_reached_directly(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_loopback(host)
    for value in ("http://proxy:1", "socks5://proxy:1", "nonsense://", "http://[", " "):
        for name in VARIABLES[:3]:
            monkeypatch.setenv(name, value)
        address = f"[{host}]" if ":" in host else host
        assert proxy_of(f"http://{address}:8000") is None


@pytest.mark.parametrize(
    "host", ["localhost.example", "notlocalhost", "128.0.0.1", "10.0.0.1", "::2", "127.example"]
)
def test_other_names_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "http://h", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://h", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "http://h", "http://p:1"),
        ({"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:1"}, "http://h", "http://low:1"),
        ({"http_proxy": "", "HTTP_PROXY": "http://up:1"}, "http://h", None),
        ({"HTTP_PROXY": "http://p:1"}, "https://h", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://h", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://h", None),
        ({"ALL_PROXY": "http://p:1"}, "http://h", "http://p:1"),
        ({"ALL_PROXY": "http://a:1", "HTTP_PROXY": "http://p:1"}, "http://h", "http://p:1"),
        ({"HTTP_PROXY": "p:3128"}, "http://h", "http://p:3128"),
        ({"HTTP_PROXY": "p"}, "http://h", "http://p"),
        ({"HTTP_PROXY": " http://p:1 "}, "http://h", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "h"}, "http://h", None),
        ({"HTTP_PROXY": "http://p:1", "no_proxy": "h"}, "http://h", None),
        # A proxy that cannot be used does not matter where none is used.
        ({"HTTPS_PROXY": "nonsense://", "HTTP_PROXY": "http://p:1"}, "http://h", "http://p:1"),
        ({"HTTP_PROXY": "nonsense://", "NO_PROXY": "*"}, "http://h", None),
    ],
)
def test_the_usual_variables_name_the_proxy(
    environ: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_listed"),
    [
        ("", "http://h", False),
        (",, ,", "http://h", False),
        ("*", "http://h", True),
        ("a, *", "http://h", True),
        ("example.com", "http://example.com", True),
        ("example.com", "http://api.example.com", True),
        ("example.com", "http://notexample.com", False),
        (".example.com", "http://api.example.com", True),
        (".example.com", "http://example.com", True),
        ("*.example.com", "http://api.example.com", True),
        ("EXAMPLE.com", "http://example.COM", True),
        ("example.com.", "http://example.com", True),
        ("a b;example.com", "http://example.com", True),
        ("example.com:8000", "http://example.com:8000", True),
        ("example.com:8001", "http://example.com:8000", False),
        ("example.com:80", "http://example.com", True),
        ("http://example.com", "http://example.com", True),
        ("10.0.0.7", "http://10.0.0.7:8000", True),
        ("10.0.0.7:8000", "http://10.0.0.7:8000", True),
        ("10.0.0.7:1", "http://10.0.0.7:8000", False),
        ("10.0.0.0/8", "http://10.9.9.9", True),
        ("10.0.0.0/8", "http://11.9.9.9", False),
        ("10.0.0.1/8", "http://10.9.9.9", True),
        ("fd00::/8", "http://[fd00::7]:8000", True),
        ("[fd00::7]:8000", "http://[fd00::7]:8000", True),
        ("[fd00::7]", "http://[fd00::7]:8000", True),
        ("fd00::7", "http://[fd00::7]", True),
        ("10.0.0.0/99, [, ]:x, ::/, /, ://, :", "http://10.0.0.7", False),
        ("10.0.0.0/99, [, ]:x, ::/, /, ://, :, .", "http://example.com", False),
    ],
)
def test_no_proxy_lists_addresses_in_all_usual_forms(
    no_proxy: str, url: str, is_listed: bool
) -> None:
    assert is_excepted(httpx.URL(url), no_proxy) == is_listed


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTP_PROXY", "ftp://p:1", "is not a URL like http://proxy:3128"),
        ("http_proxy", "http://[p:1", "is not a URL"),
        ("HTTP_PROXY", "http://p:port", "is not a URL"),
        ("HTTP_PROXY", "http://", "is not a URL"),
        ("HTTP_PROXY", "http://p:99999", "is not a URL"),
        ("HTTP_PROXY", "p q", "is not a URL"),
        ("ALL_PROXY", "://", "is not a URL"),
        ("ALL_PROXY", "socks4://p:1", "socks4 is not supported; use socks5 or socks5h"),
        ("all_proxy", "socks5://user:secret@p:1", "needs the package socksio"),
        ("HTTP_PROXY", "socks5h://p:1", "needs the package socksio"),
    ],
)
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_proxy_that_cannot_be_used_is_named(
    make: type[Client | AsyncClient],
    name: str,
    value: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("latentwire.http_environment.find_spec", lambda _: None)
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        make("http://service:8000")
    assert str(caught.value).startswith(f"{name}: ")
    assert "secret" not in str(caught.value)
    make("http://127.0.0.1:8000")
    make("http://service:8000", uses_proxy=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "the file cannot be read: No such file"),
        ("SSL_CERT_FILE", "/", "the file cannot be read|holds no certificates"),
        ("SSL_CERT_FILE", __file__, "the file holds no certificates in PEM form"),
        ("SSL_CERT_DIR", "/nowhere", "is not a directory"),
        ("SSLKEYLOGFILE", "/nowhere/keys", "the file cannot be written: No such file"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidArgumentError, match=f"{name}: ({words})"):
        Client("https://service")
    # Without TLS it does not matter.
    Client("http://service").close()


def test_certificates_of_the_environment_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = len(tls_context().get_ca_certs())
    assert everything > 10
    pem = next(iter(httpx.create_ssl_context(trust_env=False).get_ca_certs(binary_form=True)))
    file = tmp_path / "one.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(pem))
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(file))
    assert len(tls_context().get_ca_certs()) == 1
