"""The guard against blocked event loops sees what it has to see."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from latentwire_batch.output.durable import write_text


def test_a_blocking_call_in_an_event_loop_raises_and_is_recorded(
    blocking_calls: list[str], tmp_path: Path
) -> None:
    async def write() -> None:
        write_text(tmp_path / "file", "text")

    with pytest.raises(Exception, match=r"Blocking call to io\.open"):
        asyncio.run(write())
    assert blocking_calls == ["io.open"]
    blocking_calls.clear()


def test_a_blocking_call_whose_error_is_swallowed_is_recorded(
    blocking_calls: list[str], tmp_path: Path
) -> None:
    async def write() -> None:
        with contextlib.suppress(Exception):
            write_text(tmp_path / "file", "text")

    asyncio.run(write())
    assert blocking_calls == ["io.open"]
    blocking_calls.clear()


def test_the_same_call_outside_of_an_event_loop_is_allowed(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
