"""What an operator relies on: hung engines, keys that change, addresses that cannot match."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire_service.api.access_policy import (
    ApiKeys,
    PolicyError,
    all_keys,
    is_open_to_all,
    policy_of,
)
from latentwire_service.key_watch import KeyFileWatch
from latentwire_service.settings import Settings
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY, assert_problem, plan_of, post

pytestmark = pytest.mark.backends("fake", "local", "vllm")

# --- a hung engine


def test_a_hung_engine_fails_health(
    start: Callable[..., LiveServer], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    live = start(Faults(before_decode=gate), step_timeout=0.2).wait_ready()
    assert live.http.get("/health").status_code == 200
    with live.http.stream("POST", "/plan_latent", json=GREEDY | {"stream": True}):
        assert gate.is_reached.wait(TIMEOUT_S)
        while live.http.get("/health").status_code == 200:
            pass
        for path in ("/health", "/ready"):
            problem = assert_problem(live.http.get(path), 503, "not-ready")
            assert problem.detail == "the engine hangs: its step has taken more than 0.2 s"
        assert sum("the engine hangs" in message for message in caplog.messages) == 1
        gate.may_pass.set()
    assert plan_of(post(live, GREEDY))
    # On a busy machine, the last step of the stream may take as long.
    while live.http.get("/health").status_code != 200:
        pass


def test_an_idle_engine_is_not_reported_as_hung(start: Callable[..., LiveServer]) -> None:
    # Every step is older than this limit.
    live = start(step_timeout=1e-9).wait_ready()
    assert plan_of(post(live, GREEDY))
    # The step that answers ends a moment after its answer.
    while live.http.get("/health").status_code != 200:
        pass


# --- keys that change


def test_a_key_file_that_changes_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "keys"
    file.write_text("old-key\n")
    settings = Settings(api_key_file=file, api_key=("flag-key",))
    keys = ApiKeys(all_keys(settings))

    def is_valid(key: str) -> bool:
        return keys.caller_of(f"Bearer {key}".encode()) is not None

    watch = KeyFileWatch(file, lambda: keys.replace(all_keys(settings)))
    watch.check()
    assert caplog.messages == []
    file.write_text("old-key\nnew-key\n")
    watch.check()
    assert caplog.messages == ["the API keys were read again"]
    assert [is_valid(k) for k in ("old-key", "new-key", "flag-key")] == [True, True, True]
    # Replaced by a file of the same size and time.
    (tmp_path / "other").write_text("new-key\nxyz-key\n")
    os.utime(tmp_path / "other", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    (tmp_path / "other").rename(file)
    watch.check()
    assert [is_valid(k) for k in ("old-key", "new-key", "xyz-key")] == [False, True, True]
    for spoil in (
        lambda: file.write_text(""),
        lambda: file.write_text("one key with spaces\n"),
        lambda: file.write_bytes(b"\xff\xfe"),
        file.unlink,
    ):
        spoil()
        caplog.clear()
        watch.check()
        watch.check()
        (message,) = caplog.messages
        assert message.startswith("the API keys stay as they are: ")
        assert [is_valid(k) for k in ("new-key", "xyz-key", "flag-key")] == [True, True, True]
    file.write_text("last-key")
    watch.check()
    assert [is_valid(k) for k in ("new-key", "last-key", "flag-key")] == [False, True, True]


def test_the_watch_stops() -> None:
    watch = KeyFileWatch(Path("/nowhere"), lambda: None)
    watch.start()
    watch.stop()


# --- names and addresses


@pytest.mark.parametrize(
    "name",
    [
        *("example.org:8000", "localhost:80", "[::1]:8000", "http://example.org", "example.org/x"),
        *("*", "*.example.org", "", "exa mple.org", "a,b", "user@host", "x" * 300 + ":1"),
    ],
)
def test_an_allowed_host_that_no_header_matches_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="^--allowed-host: ") as refused:
        policy_of(Settings(allowed_host=(name,)))
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("Example.org", "example.org"),
        ("my_host", "my_host"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_allowed_host_is_kept_as_headers_write_it(name: str, host: str) -> None:
    assert policy_of(Settings(allowed_host=(name,))).allowed_hosts == frozenset({host})


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://a/b", "", "https://"]
)
def test_an_origin_that_no_page_has_is_refused(origin: str) -> None:
    with pytest.raises(PolicyError, match="^--cors-origin: "):
        policy_of(Settings(cors_origin=(origin,)))


@pytest.mark.parametrize(
    "setting",
    [
        {"cors_origin": ("http://user:s3cret@a.example",)},
        {"cors_origin": ("https://a.example/?X-Amz-Signature=s3cret",)},
        {"allowed_host": ("user:s3cret@a.example",)},
        {"allowed_host": ("https://user:s3cret@a.example:1/x?key=s3cret",)},
    ],
)
def test_a_refused_value_is_quoted_without_its_secrets(setting: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"a\.example") as caught:
        policy_of(Settings(**setting))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("origin", ["*", "null", "https://example.org", "http://[::1]:3000"])
def test_an_origin_of_a_page_is_kept(origin: str) -> None:
    assert policy_of(Settings(cors_origin=(origin,))).cors_origins == (origin,)


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "10.0.0.1"}, True),
        ({"host": "example.org"}, True),
        ({"host": "0.0.0.0", "allowed_host": ("example.org",)}, True),
        ({"host": "0.0.0.0", "api_key": ("k",)}, False),
        ({"host": "0.0.0.0", "api_key_file": Path("keys")}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.0.0.2"}, False),
        ({"host": "::1"}, False),
        ({"host": "LocalHost"}, False),
        ({}, False),
    ],
)
def test_a_service_without_keys_that_others_reach_is_noticed(
    changes: dict[str, Any], is_open: bool
) -> None:
    assert is_open_to_all(Settings(**changes)) is is_open


@pytest.mark.backends("fake")
def test_421_names_the_host_and_the_flag(server: LiveServer) -> None:
    for host in ("evil.example:80", "x" * 5000):
        problem = assert_problem(
            server.http.get("/info", headers={"Host": host}), 421, "misdirected"
        )
        assert "--allowed-host" in problem.detail
        assert host[:100] in problem.detail
        assert len(problem.detail) < 200


@pytest.mark.backends("fake")
def test_drawn_seeds_are_exact_in_javascript(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.randbits", lambda bits: 2**bits - 1)
    assert plan_of(post(server, {"task": "x", "max_new_tokens": 1})).seed == 2**53 - 1
    larger = {"task": "x", "max_new_tokens": 1, "seed": 2**63 - 1}
    assert plan_of(post(server, larger)).seed == 2**63 - 1


@pytest.mark.backends("fake")
def test_probes_are_not_counted_as_requests(server: LiveServer) -> None:
    server.http.get("/health")
    shown = server.http.get("/metrics").text
    assert 'latentwire_probes_total{path="/health",status="200"}' in shown
    assert 'latentwire_requests_total{path="/health"' not in shown
    for name in ("latentwire_build_info{", "process_resident_memory_bytes", "python="):
        assert name in shown
    assert 'latentwire_time_to_first_token_seconds_bucket{le="600.0"}' in shown
