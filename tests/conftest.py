"""What holds for every test: no network, and no settings from outside."""

from __future__ import annotations

import os

import pytest

# Read by Hugging Face's libraries when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LATENTWIRE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
