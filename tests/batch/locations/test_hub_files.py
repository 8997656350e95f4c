"""Files of the Hugging Face hub, as `hf://datasets/owner/name/file`, over a stand-in of the hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.locations import place_of
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields

FIELDS = RowFields("task", None, "id")
NAME = "tasks.jsonl"
LINES = "".join(json.dumps({"task": f"task {i}"}) + "\n" for i in range(5)).encode()
COMMIT = "c" * 40


class _Hub(BaseHTTPRequestHandler):
    """Holds one dataset of one file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._send(LINES)
        elif "/tree/" in self.path:
            file = {"type": "file", "path": NAME, "size": len(LINES), "oid": "f" * 40}
            self._send(json.dumps([file]).encode())
        else:
            self._send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())

    def _send(self, body: bytes) -> None:
        wanted = self.headers.get("Range")
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body = body[int(first) : int(last) + 1]
        self.send_response(200 if wanted is None else 206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    template = template.replace(huggingface_hub.constants.ENDPOINT, address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield
    huggingface_hub.HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_file_of_a_hub_dataset_is_read() -> None:
    source = TaskSource(place_of(f"hf://datasets/owner/name/{NAME}"), FIELDS)
    assert [row.task for row in source.rows()] == [f"task {i}" for i in range(5)]
    assert list(source.rows()) == list(source.rows())
    with pytest.raises(InputError, match="no such file or folder"):
        list(TaskSource(place_of("hf://datasets/owner/name/other.jsonl"), FIELDS).rows())
