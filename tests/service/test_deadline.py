"""Only the expiry of a deadline is reported as one."""

from __future__ import annotations

import asyncio

import pytest

from latentwire_service.deadline import Deadline
from latentwire_service.engine.errors import DeadlineExceededError


async def run(timeout_s: float | None, error: Exception | None) -> None:
    async with Deadline(timeout_s).enforced():
        if error is not None:
            raise error
        await asyncio.Event().wait()


def test_an_expired_deadline_names_its_limit() -> None:
    with pytest.raises(DeadlineExceededError, match=r"within 0\.01 s"):
        asyncio.run(run(0.01, None))


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_timeout_of_the_block_is_passed_on(timeout_s: float | None) -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(run(timeout_s, TimeoutError("of its own")))


def test_a_deadline_starts_when_it_is_made() -> None:
    async def enforce_late() -> None:
        deadline = Deadline(0.0)
        async with deadline.enforced():
            await asyncio.sleep(0)
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceededError):
        asyncio.run(enforce_late())
