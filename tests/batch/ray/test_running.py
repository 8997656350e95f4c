"""What a replica tells the ledger of the rows in its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from latentwire_batch.ray.running import RunningRows


async def turns() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_row_starts_once_the_ledger_knows_it_and_rows_share_calls() -> None:
    async def run() -> None:
        calls: list[tuple[list[int], list[int]]] = []
        answers: list[asyncio.Future[bool]] = []

        async def note(started: Sequence[int], ended: Sequence[int]) -> bool:
            calls.append((list(started), list(ended)))
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

        rows = RunningRows(note)
        first = asyncio.create_task(rows.start([0]))
        await turns()
        later = [asyncio.create_task(rows.start([index])) for index in (1, 2)]
        await turns()
        assert calls == [([0], [])]
        assert not first.done()
        answers[0].set_result(True)
        assert await first
        rows.end([0])
        await turns()
        # Row 0 ended while the others were told.
        assert calls[1] == ([1, 2], [])
        answers[1].set_result(False)
        assert await asyncio.gather(*later) == [False, False]
        await turns()
        assert calls[2] == ([], [0])
        answers[2].set_exception(ConnectionError("gone"))
        await turns()
        last = asyncio.create_task(rows.start([3]))
        await turns()
        answers[3].set_exception(ConnectionError("gone"))
        with pytest.raises(ConnectionError):
            await last

    asyncio.run(run())
