"""`/docs` in a browser without a network, and what the OpenAPI document says of keys."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.openapi_document import generated

from latentwire_service.api.docs_page import docs_page
from support.live_server import LiveServer

pytestmark = pytest.mark.backends("fake")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def test_the_page_loads_nothing_and_names_everything(start: Callable[..., LiveServer]) -> None:
    live = start(api_key="k").wait_ready()
    live.http.headers.pop("authorization")
    answer = live.http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (
        200,
        "text/html; charset=utf-8",
    )
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = answer.text
    assert not re.search(r"<script|<link|<img|@import|url\(|src=", page)
    for name in ("POST /plan_latent", "max_new_tokens", "queue-full", "Authorization: Bearer KEY"):
        assert name in page
    assert live.http.get("/openapi.json").status_code == 200
    assert live.http.get("/redoc").status_code == 401


def test_texts_of_the_document_are_escaped() -> None:
    document = generated()
    document["info"]["summary"] = "<script>alert(1)</script>"
    assert "<script" not in docs_page(document)


@pytest.mark.parametrize(
    ("keys", "needed"), [((), [{}, {"ApiKey": []}]), (("k",), [{"ApiKey": []}])]
)
def test_the_document_says_which_paths_need_a_key(
    start: Callable[..., LiveServer], keys: tuple[str, ...], needed: object
) -> None:
    document = start(api_key=keys).wait_ready().http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    found = {
        (path, method): operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found == {
        ("/plan_latent", "post"): needed,
        ("/plan_latent", "get"): needed,
        ("/info", "get"): needed,
        ("/metrics", "get"): needed,
        ("/v1/chat/completions", "post"): needed,
        ("/v1/models", "get"): needed,
        ("/v1/models/{model}", "get"): needed,
        ("/health", "get"): None,
        ("/ready", "get"): None,
    }


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt-get install chromium)")
def test_a_browser_without_a_network_shows_the_page(server: LiveServer, tmp_path: Path) -> None:
    assert BROWSER is not None
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
        # Every name but the service's address fails to resolve.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--dump-dom",
    ]
    shown = subprocess.run(
        [BROWSER, *options, f"{server.url}/docs"], capture_output=True, text=True, timeout=120
    ).stdout
    assert "POST /plan_latent" in shown
    assert "ERR_" not in shown
