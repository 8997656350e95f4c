"""`--listen-fd`: the service listens on a socket that its parent has bound."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentwire_service.api.access_policy import policy_of
from latentwire_service.compression.catalog import CompressorCatalog
from latentwire_service.server import EXIT_FAILED, _listening_socket, serve
from latentwire_service.settings import Settings


@pytest.fixture
def parent() -> Iterator[socket.socket]:
    """A socket as a parent process binds it, inheritable as `pass_fds` leaves it in a child."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def inherited(bound: socket.socket) -> int:
    fd = os.dup(bound.fileno())
    os.set_inheritable(fd, True)
    return fd


def test_connections_to_the_parents_port_are_accepted(parent: socket.socket) -> None:
    with _listening_socket(Settings(listen_fd=inherited(parent))) as listening:
        assert listening.getsockname() == parent.getsockname()
        with socket.create_connection(parent.getsockname(), timeout=30):
            accepted, _ = listening.accept()
            accepted.close()


def test_the_socket_is_known_as_tcp(parent: socket.socket) -> None:
    # Only then does asyncio turn off Nagle's algorithm.
    with _listening_socket(Settings(listen_fd=inherited(parent))) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_processes_that_the_service_starts_do_not_inherit_it(parent: socket.socket) -> None:
    with _listening_socket(Settings(listen_fd=inherited(parent))) as listening:
        assert not listening.get_inheritable()


def test_a_file_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(listen_fd=os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR))
    assert serve(settings, policy_of(settings), CompressorCatalog()) == EXIT_FAILED
    assert "cannot listen on --listen-fd: Socket operation on non-socket" in caplog.text
    assert settings.listen_fd is not None
    os.close(settings.listen_fd)


def test_a_unix_socket_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        settings = Settings(listen_fd=inherited(unix))
        assert serve(settings, policy_of(settings), CompressorCatalog()) == EXIT_FAILED
    assert "cannot listen on --listen-fd: Address family not supported" in caplog.text
