from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import UsageError
from latentwire_batch.replicas.select import given_replicas


def settings_with(tmp_path: Path, **given: object) -> CollectSettings:
    paths = {"dataset": (str(tmp_path / "tasks.jsonl"),), "output_dir": tmp_path / "out"}
    return CollectSettings.model_validate({**paths, "replica": ("http://127.0.0.1:1",), **given})


@pytest.mark.parametrize("content", [b"secret-1\n", b"\n  secret-1  \nsecret-2\n", b"secret-1\r\n"])
def test_the_key_file_s_first_key_is_sent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    source = given_replicas(settings_with(tmp_path, api_key_file=file))
    client = source.connect("http://127.0.0.1:1")
    assert client._http.headers["Authorization"] == "Bearer secret-1"
    asyncio.run(client.aclose())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "contains no key"),
        (b" \n\n", "contains no key"),
        (b"\xff\xfe", "cannot be read: not a text file"),
    ],
)
def test_a_key_file_without_a_key_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"--api-key-file {reason}"):
        given_replicas(settings_with(tmp_path, api_key_file=file))


def test_a_key_and_a_key_file_are_refused_together(tmp_path: Path) -> None:
    given = {"api_key": "secret", "api_key_file": tmp_path / "keys"}
    with pytest.raises(UsageError, match="give one of them"):
        given_replicas(settings_with(tmp_path, **given))
