"""A server on loopback that answers as S3 does, and the environment that leads clients to it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import fsspec.asyn
import httpx
import pytest
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "plans"
# Seconds that a busy machine may take for an answer.
PATIENT = {"connect_timeout": 120, "read_timeout": 120}


@dataclass(frozen=True)
class S3Server:
    """One server.

    Attributes:
        endpoint: its address.
        environment: variables with which any S3 client reaches it.
        clients: that were made of it.
    """

    endpoint: str
    clients: list[s3fs.S3FileSystem] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "a-key-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """Return a client that keeps no lists, apart from those of the code under test."""
        client = s3fs.S3FileSystem(
            endpoint_url=self.endpoint,
            key="a-key-id",
            secret="a-secret",
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs=PATIENT,
        )
        self.clients.append(client)
        return client


@contextmanager
def running_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run a server with one bucket, to which this process's S3 clients lead."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    running = S3Server(f"http://{host}:{port}")
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    # All servers of a process share what they hold. The first request imports much of the server.
    reset = httpx.post(f"{running.endpoint}/moto-api/reset", trust_env=False, timeout=180)
    reset.raise_for_status()
    running.filesystem().mkdir(BUCKET)
    try:
        yield running
    finally:
        _close_clients(running.clients)
        server.stop()


def _close_clients(own: Sequence[s3fs.S3FileSystem]) -> None:
    """Close these clients, and those that fsspec keeps.

    When one is collected, s3fs gives it a tenth of a second to close its connections, which a busy
    machine may miss.
    """
    for client in (*own, *s3fs.S3FileSystem._cache.values()):
        if client._s3 is not None:
            fsspec.asyn.sync(client.loop, client._s3creator.__aexit__, None, None, None)
    s3fs.S3FileSystem.clear_instance_cache()


class Watcher:
    """Lists a folder the whole time.

    Attributes:
        lists: names in the folder, whenever they changed.
    """

    def __init__(self, filesystem: s3fs.S3FileSystem, folder: str) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self.lists: list[set[str]] = [set()]
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait_for(self, num_files: int) -> None:
        """Wait until there are so many files."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.lists[-1]) >= num_files, timeout=180)

    def _watch(self) -> None:
        # The pause leaves the server's thread time for the upload.
        while not self._ended.wait(0.02):
            found = {
                name.removeprefix(f"{self._folder}/")
                for name in self._filesystem.find(self._folder)
            }
            with self._changed:
                if found != self.lists[-1]:
                    self.lists.append(found)
                    self._changed.notify_all()
