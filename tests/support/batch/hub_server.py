"""A stand-in of the hub's HTTP API: repositories, files, uploads of large ones, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import huggingface_hub.constants
import pytest

from support.gate import TIMEOUT_S
from support.network.serving import ThreadServer

TOKEN = "hf_s3cretToken"
# As on the hub, what is large or not text is kept apart from the commit.
_LARGE_SUFFIX = ".parquet"
_SHA = "1" * 40


@dataclass
class Repository:
    """A dataset: the files of each commit of its branches, and whether others may see it."""

    is_private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"lfs"}])
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def commits_of(self, revision: str) -> list[dict[str, bytes]] | None:
        """Return the commits of a branch; None for an unknown one. A commit is of the main one."""
        return self.commits if revision in ("main", _SHA) else self.branches.get(revision)


class HubServer(ThreadServer):
    """Serves on loopback while it is entered.

    Attributes:
        repositories: by name.
        blobs: large files that have arrived, by their SHA-256.
        uploads: the SHA-256 of each upload, in order; the same one twice means it was sent twice.
        faults: by the kind of a request, statuses of the next ones; 0 drops the connection, and
            None lets one pass.
        arrived: set at every upload.
        gate: uploads wait for it before they are answered.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.faults: dict[str, deque[int | None]] = {}
        self.arrived = threading.Event()
        self.gate: threading.Event | None = None
        self._counting = _CountingServer(("127.0.0.1", 0), _handler(self))
        super().__init__(self._counting)

    def wait_idle(self) -> None:
        """Wait for the ends of all connections that were made before."""
        # Connections are accepted in their order, and each has one request.
        httpx.get(f"{self.url}/api/datasets/none/none", trust_env=False, timeout=TIMEOUT_S)
        changed = self._counting.changed
        with changed:
            assert changed.wait_for(lambda: not self._counting.num_open, TIMEOUT_S)


class _CountingServer(ThreadingHTTPServer):
    """Counts the connections that are open."""

    def __init__(self, *args: Any) -> None:
        self.num_open = 0
        self.changed = threading.Condition()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.changed:
            self.num_open += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.changed:
                self.num_open -= 1
                self.changed.notify_all()


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub to which this process's clients lead, with a token and without waiting."""
    constants = huggingface_hub.constants
    with HubServer() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/none")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        try:
            yield server
        finally:
            huggingface_hub.HfFileSystem.clear_instance_cache()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if self._is_refused("read"):
                return
            name = _name_in(url.path)
            kind, revision, folder = _revision_in(url.path)
            found = hub.repositories.get(name)
            commits = None if found is None else found.commits_of(revision)
            if found is None:
                self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            elif commits is None:
                self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            elif kind == "resolve":
                self._resolve(commits[-1].get(folder))
            elif kind == "tree":
                is_recursive = parse_qs(url.query).get("recursive") in (["true"], ["True"])
                entries = _tree(commits[-1], folder, is_recursive)
                if folder and not entries:
                    self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
                else:
                    self._answer(200, entries)
            else:
                self._answer(200, _info(name, found))

        do_HEAD = do_GET

        def _resolve(self, data: bytes | None) -> None:
            if data is None:
                self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
                return
            wanted = self.headers.get("Range", "")
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first or 0) : int(last) + 1 if last else None]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(part)))
            if wanted:
                end = int(first or 0) + len(part) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(data)}")
            self.send_header("ETag", f'"{_git_oid(data)}"')
            self.send_header("X-Repo-Commit", _SHA)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = urlsplit(self.path).path
            kind, answer = next(
                (kind, answer)
                for mark, kind, answer in (
                    ("/api/repos/create", "create", self._create),
                    ("/api/validate-yaml", "yaml", self._validate),
                    ("/preupload/", "preupload", self._preupload),
                    ("/info/lfs/objects/batch", "batch", self._batch),
                    ("/commit/", "commit", self._commit),
                    ("/paths-info/", "read", self._paths),
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
            hub.arrived.set()
            if hub.gate is not None:
                hub.gate.wait()
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

        def _paths(self, path: str, body: bytes) -> tuple[int, Any]:
            files = _commits_in(hub, path)[-1]
            wanted = parse_qs(body.decode())["paths"]
            return 200, [_entry(name, files[name]) for name in wanted if name in files]

        def _validate(self, _path: str, _body: bytes) -> tuple[int, Any]:
            return 200, {"errors": [], "warnings": []}

        def _preupload(self, path: str, body: bytes) -> tuple[int, Any]:
            files = _commits_in(hub, path)[-1]
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
            name, commits = _name_in(path), _commits_in(hub, path)
            files = dict(commits[-1])
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif entry["key"] == "deletedFile":
                    if value["path"] not in files:
                        return 404, {"error": "A file with this name doesn't exist"}
                    del files[value["path"]]
            commits.append(files)
            url = f"{hub.url}/datasets/{name}/commit/1"
            return 200, {"success": True, "commitOid": _SHA, "commitUrl": url}

        def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _name_in(path: str) -> str:
    return "/".join(path.removeprefix("/api").removeprefix("/datasets/").split("/")[:2])


def _revision_in(path: str) -> tuple[str, str, str]:
    """Return what a path is about, the revision, and the name of a file or folder."""
    parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")[2:]
    kind, revision, name = parts[0] if parts else "", "".join(parts[1:2]), "/".join(parts[2:])
    # A slash in the name of a branch is quoted.
    return kind, unquote(revision) or "main", unquote(name)


def _commits_in(hub: HubServer, path: str) -> list[dict[str, bytes]]:
    commits = hub.repositories[_name_in(path)].commits_of(_revision_in(path)[1])
    assert commits is not None
    return commits


def _oid(files: dict[str, bytes], path: str) -> str:
    data = files[path]
    return hashlib.sha256(data).hexdigest() if path.endswith(_LARGE_SUFFIX) else _git_oid(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree(files: dict[str, bytes], folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    """List the files and folders of a folder as the hub does."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(prefix):
            continue
        parents = path.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if depth == 1 or is_recursive:
                name = prefix + "/".join(parents[:depth])
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": "d" * 40}
        if not parents or is_recursive:
            entries[path] = _entry(path, data)
    return list(entries.values())


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
    if not path.endswith(_LARGE_SUFFIX):
        return entry
    return {**entry, "lfs": {"oid": _oid({path: data}, path), "size": len(data), "pointerSize": 9}}


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "id": name,
        "sha": _SHA,
        "private": repository.is_private,
        "siblings": [{"rfilename": path} for path in repository.files],
    }
