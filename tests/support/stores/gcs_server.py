"""A server on loopback that answers as Google Cloud Storage does, also to conditional writes."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import gcsfs
import pytest
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "plans"


def _insert(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse what is to be created and exists, which the emulator itself does not."""
    if request.query.get("ifGenerationMatch") == ["0"]:
        name = request.data["meta"]["name"]
        try:
            storage.get_file_obj(request.params["bucket_name"], name)
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    objects.insert(request, response, storage, *args, **kwargs)


@contextmanager
def running_gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcsfs.GCSFileSystem]:
    """Run a server with one bucket, to which this process's clients lead; yield a client."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    for _, handlers in emulator.HANDLERS:
        for method, handler in handlers.items():
            if handler is objects.insert:
                monkeypatch.setitem(handlers, method, _insert)
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    port = server._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()


def without_gcsfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package be missing."""
    # The package has an attribute of the same name.
    registry: Any = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):
        monkeypatch.delitem(registry._registry, name, raising=False)
