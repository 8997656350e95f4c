"""A stand-in of the hub's HTTP API: repositories, uploads of large files, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_s3cretToken"
# As on the hub, what is large or not text is kept apart from the commit.
_LARGE_SUFFIX = ".parquet"


@dataclass
class Repository:
    """A dataset: the files of each commit, and whether others may see it."""

    is_private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"lfs"}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


class HubServer:
    """Serves on loopback while it is entered.

    Attributes:
        repositories: by name.
        blobs: large files that have arrived, by their SHA-256.
        uploads: the SHA-256 of each upload, in order; the same one twice means it was sent twice.
        faults: by the kind of a request, statuses of the next ones; 0 drops the connection.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.faults: dict[str, deque[int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if self._is_refused("read"):
                return
            name = path.removeprefix("/api/datasets/").partition("/tree/")[0]
            if "/tree/" in path:
                files = hub.repositories[name].files
                entries = [
                    {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
                    for path, data in files.items()
                ]
                self._answer(200, entries)
            else:
                name = name.partition("/revision/")[0]
                found = hub.repositories.get(name)
                self._answer(*((200, _info(name, found)) if found else (404, {})))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = unquote(urlsplit(self.path).path)
            kind, answer = next(
                (kind, answer)
                for mark, kind, answer in (
                    ("/api/repos/create", "create", self._create),
                    ("/api/validate-yaml", "yaml", self._validate),
                    ("/preupload/", "preupload", self._preupload),
                    ("/info/lfs/objects/batch", "batch", self._batch),
                    ("/commit/", "commit", self._commit),
                )
                if mark in path
            )
            if not self._is_refused(kind):
                self._answer(*answer(path, body))

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self._is_refused("upload"):
                return
            sha256 = self.path.rpartition("/")[2]
            assert hashlib.sha256(data).hexdigest() == sha256
            hub.blobs[sha256] = data
            hub.uploads.append(sha256)
            self._answer(200, {})

        def _is_refused(self, kind: str) -> bool:
            faults = hub.faults.get(kind)
            status = faults.popleft() if faults else None
            # The addresses of large files are signed: no token goes there.
            is_known = kind == "upload" or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if status is None and not is_known:
                status = 401
            if status == 0:
                self.close_connection = True
                self.connection.close()
            elif status is not None:
                self._answer(status, {"error": f"refused, token {TOKEN}"})
            return status is not None

        def _create(self, _path: str, body: bytes) -> tuple[int, Any]:
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            assert asked["type"] == "dataset"
            if name in hub.repositories:
                return 409, {"url": f"{hub.url}/datasets/{name}"}
            is_private = asked.get("visibility") == "private" or asked.get("private") is True
            hub.repositories[name] = Repository(is_private)
            return 200, {"url": f"{hub.url}/datasets/{name}"}

        def _validate(self, _path: str, _body: bytes) -> tuple[int, Any]:
            return 200, {"errors": [], "warnings": []}

        def _preupload(self, path: str, body: bytes) -> tuple[int, Any]:
            files = hub.repositories[_name_in(path)].files
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE_SUFFIX) else "regular",
                    "shouldIgnore": False,
                    **({"oid": _oid(files, file["path"])} if file["path"] in files else {}),
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}

        def _batch(self, _path: str, body: bytes) -> tuple[int, Any]:
            objects = []
            for item in json.loads(body)["objects"]:
                href = f"{hub.url}/upload/{item['oid']}"
                actions = (
                    {} if item["oid"] in hub.blobs else {"actions": {"upload": {"href": href}}}
                )
                objects.append({"oid": item["oid"], "size": item["size"], **actions})
            return 200, {"transfer": "basic", "objects": objects}

        def _commit(self, path: str, body: bytes) -> tuple[int, Any]:
            name = _name_in(path)
            files = dict(hub.repositories[name].files)
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            hub.repositories[name].commits.append(files)
            url = f"{hub.url}/datasets/{name}/commit/1"
            return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": url}

        def _answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _name_in(path: str) -> str:
    return "/".join(path.removeprefix("/api/datasets/").split("/")[:2])


def _oid(files: dict[str, bytes], path: str) -> str:
    data = files[path]
    return hashlib.sha256(data).hexdigest() if path.endswith(_LARGE_SUFFIX) else _git_oid(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "id": name,
        "sha": "1" * 40,
        "private": repository.is_private,
        "siblings": [{"rfilename": path} for path in repository.files],
    }
