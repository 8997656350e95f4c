"""The check at the start finds rows that are not latents, and the service says in what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire_service import server
from latentwire_service.api.access_policy import policy_of
from latentwire_service.compression.catalog import CompressorCatalog
from latentwire_service.settings import Settings
from latentwire_service.vllm_engine.events import Event, NewTokens
from latentwire_service.vllm_engine.row_wire import RowBatch
from support.backends import NO_FAULTS
from support.engine.vllm_models import NEEDS_VLLM

pytestmark = [
    pytest.mark.backends("vllm"),
    NEEDS_VLLM,
    pytest.mark.vllm,
    pytest.mark.timeout(2400),
]


def scaled(event: Event) -> Event:
    """Without its norm, a row has another length, but mostly the same likeliest token."""
    return replace(event, rows=event.rows * 3) if isinstance(event, RowBatch) else event


def of_the_token_before(event: Event) -> Event:
    if not isinstance(event, RowBatch):
        return event
    return replace(event, rows=np.roll(event.rows, 1, axis=1))


def not_finite(event: Event) -> Event:
    if not isinstance(event, RowBatch):
        return event
    return replace(event, rows=np.full_like(event.rows, np.inf))


def narrow(event: Event) -> Event:
    return replace(event, rows=event.rows[:, 1:]) if isinstance(event, RowBatch) else event


def without_the_first(event: Event) -> Event:
    if isinstance(event, RowBatch) and event.indices == [0]:
        return RowBatch([], [], event.rows[:0])
    return event


def numbered_from_one(event: Event) -> Event:
    if not isinstance(event, RowBatch):
        return event
    return replace(event, indices=[index + 1 for index in event.indices])


def another_token(event: Event) -> Event:
    if not isinstance(event, NewTokens):
        return event
    return replace(event, token_ids=[token_id ^ 1 for token_id in event.token_ids])


def ended(_event: Event) -> Event:
    return None


CHANGES: dict[str, tuple[Callable[[Event], Event], str]] = {
    "no norm": (scaled, "differs from Hugging Face's by 2 of its length"),
    "other values": (of_the_token_before, "the LM head makes tokens"),
    "another token": (another_token, "the LM head makes tokens"),
    "not finite": (not_finite, "not finite"),
    "narrow": (narrow, "a row has 47 values, not 48"),
    "a missing row": (without_the_first, "4 tokens came with 3 rows"),
    "other numbers": (numbered_from_one, "the rows are numbered [1, 2, 3, 4]"),
    "a dead process": (ended, "vLLM's engine process ended on its first request"),
}


@dataclass
class Changed:
    """A core whose events are changed."""

    core: Any
    change: Callable[[Event], Event]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def events(self, timeout_s: float) -> list[Event]:
        return [self.change(event) for event in self.core.events(timeout_s)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_failed_check_ends_with_status_2_and_says_what_differs(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from latentwire_service.vllm_engine import self_check
    from latentwire_service.vllm_engine.backend import VllmBackend
    from support.engine.vllm_cores import current_vllm

    change, message = CHANGES[name]

    def make_core(engine_args: Mapping[str, Any], on_lost: Any, /) -> Any:
        return Changed(current_vllm().make_core(NO_FAULTS)(engine_args, on_lost), change)

    def factory(settings: Settings) -> Any:
        return partial(VllmBackend, settings, make_core=make_core)

    monkeypatch.setattr(server, "backend_factory", factory)
    monkeypatch.setattr(self_check, "_TIMEOUT_S", 5.0)
    settings = Settings(model=str(folder), engine="vllm", max_slots=2, port=0)
    with caplog.at_level(logging.ERROR):
        status = server.serve(settings, policy_of(settings), CompressorCatalog())
    assert status == server.EXIT_BAD_MODEL == 2
    (logged,) = [each for each in caplog.messages if each.startswith("cannot serve the model")]
    assert message in logged


def test_a_version_that_was_not_tested_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    import vllm

    from latentwire_service.vllm_engine.backend import _warn_about_version

    for version in (vllm.__version__, "0.32.7"):
        _warn_about_version(version)
    assert not caplog.messages
    for version in ("0.33.0", "0.3", "0.320.1", "1.0"):
        caplog.clear()
        _warn_about_version(version)
        (message,) = caplog.messages
        assert message.startswith(f"vLLM {version} was not tested")
