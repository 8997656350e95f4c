"""What holds for every test: no network, and no settings from outside."""

from __future__ import annotations

import os

import pytest

# Read by Hugging Face's libraries when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read by torch, here and in child processes: tiny models are slower on two threads than on one, and
# threads that spin at the end of a parallel region keep the others from the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LATENTWIRE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
