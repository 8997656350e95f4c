"""Which rows of a block a replica on Ray has to do, whatever has ended before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from latentwire_batch.ray.ledger import Begun, Ledger, Member, Settled
from latentwire_batch.tasks.results import Suspicion

FIRST, AGAIN, OTHER = Member("a", "1"), Member("a", "2"), Member("b", "1")


async def opened(num_rows: int = 8, done: Sequence[int] = ()) -> Ledger:
    ledger = Ledger()
    pending = np.ones(num_rows, dtype=np.bool_)
    pending[list(done)] = False
    pending.flags.writeable = False
    await ledger.open(pending, {})
    return ledger


def test_rows_that_are_done_are_not_done_again() -> None:
    async def run() -> None:
        ledger = await opened(done=[1])
        assert await ledger.begin(FIRST, [0, 1, 2]) == Begun((0, 2))
        await ledger.settle(FIRST, [Settled(0, 5), Settled(2, code="timeout")])
        # Ray sends a block again when its answer is lost with a node.
        assert await ledger.begin(OTHER, [0, 1, 2]) == Begun()

    asyncio.run(run())


def test_rows_of_a_replica_that_ended_are_done_by_the_next() -> None:
    async def run() -> None:
        ledger = await opened()
        await ledger.begin(FIRST, [0, 1, 2, 3])
        await ledger.note(FIRST, [0, 1, 2], [])
        await ledger.note(FIRST, [], [2])
        await ledger.settle(FIRST, [Settled(1, 5)])
        await ledger.start(AGAIN)
        assert await ledger.begin(AGAIN, [0, 1, 2]) == Begun((0, 2))
        (left,) = [each for each in await ledger.take_events() if each.kind == "left"]
        # Row 2 had run, but was not durable; row 3 only waited.
        assert (left.member, left.indices) == (FIRST, [0, 2])
        # Another actor's rows came to this one, so that actor has gone for good.
        await ledger.begin(OTHER, [3, 4])
        assert (await ledger.begin(AGAIN, [3])).together == (3,)
        assert [each.member for each in await ledger.take_events() if each.kind == "left"] == [
            OTHER
        ]

    asyncio.run(run())


def test_a_row_that_two_replicas_settle_counts_once() -> None:
    async def run() -> None:
        ledger = await opened()
        await ledger.begin(FIRST, [0, 1])
        # Ray takes the first one for lost, but it works on.
        await ledger.begin(OTHER, [0, 1])
        await ledger.settle(FIRST, [Settled(0, 5)])
        await ledger.settle(OTHER, [Settled(0, 5), Settled(1, 4)])
        await ledger.settle(FIRST, [Settled(1, code="timeout")])
        events = await ledger.take_events()
        assert [event.settled for event in events if event.kind == "settled"] == [
            [Settled(0, 5)],
            [Settled(1, 4)],
        ]

    asyncio.run(run())


def test_a_replica_waits_until_the_driver_lets_rows_in_and_gets_none_after_a_stop() -> None:
    async def run() -> None:
        ledger = Ledger()
        joining = asyncio.create_task(ledger.join(FIRST, {"model": "m"}))
        await asyncio.sleep(0)
        (joined,) = await ledger.take_events()
        assert (joined.kind, joined.info) == ("joined", {"model": "m"})
        assert not joining.done()
        await ledger.open(np.ones(2, dtype=np.bool_), {})
        await joining
        await ledger.begin(FIRST, [0, 1])
        assert await ledger.note(FIRST, [0], [])
        await ledger.stop()
        assert not await ledger.note(FIRST, [1], [0])
        assert await ledger.begin(FIRST, [0, 1]) == Begun()
        began = [each for each in await ledger.take_events() if each.kind == "began"]
        assert [each.indices for each in began] == [[0]]

    asyncio.run(run())


def test_only_rows_that_run_are_suspected() -> None:
    async def run() -> None:
        ledger = await opened()
        for member in (FIRST, AGAIN):
            await ledger.start(member)
            assert (await ledger.begin(member, range(5))).together[:2] == (0, 1)
            await ledger.note(member, [0, 1], [])
            await ledger.note(member, [2, 3], [0, 1])
            # From a process that has ended: its rows are those of another one.
            await ledger.note(Member("a", "0"), [4], [2])
        begun = await ledger.begin(OTHER, range(5))
        # Rows 0 and 1 ran to their end, and row 4 waited.
        assert begun.together == (0, 1, 4)
        assert begun.apart == ((2, Suspicion(1, 2, 0)), (3, Suspicion(1, 2, 0)))

    asyncio.run(run())


@pytest.mark.parametrize("guilty", [0, 5, 31])
def test_a_row_that_ends_replicas_is_found_and_no_other_row_is_blamed(guilty: int) -> None:
    """A model of a replica: it ends when the guilty row is among those that run."""
    num_rows, block_rows = 32, 8

    async def run() -> None:
        ledger = await opened(num_rows)
        blamed: list[int] = []
        num_starts = 0
        left = set(range(num_rows))
        while left:
            num_starts += 1
            assert num_starts < 10
            member = Member("a", str(num_starts))
            await ledger.start(member)
            blocks = [
                await ledger.begin(member, range(start, start + block_rows))
                for start in range(0, num_rows, block_rows)
            ]
            groups = [[index for begun in blocks for index in begun.together]]
            blamed += [index for begun in blocks for index, _ in begun.guilty]
            for begun in blocks:
                apart = [index for index, _ in begun.apart]
                size = min((each.group_size for _, each in begun.apart), default=1)
                groups += [apart[at : at + size] for at in range(0, len(apart), size)]
            left -= set(blamed)
            for group in groups:
                assert await ledger.note(member, group, [])
                if guilty in group:
                    break
                await ledger.note(member, [], group)
                await ledger.settle(member, [Settled(index, 1) for index in group])
                left -= set(group)
        assert blamed == [guilty]

    asyncio.run(run())


def test_what_an_earlier_run_suspected_holds() -> None:
    async def run() -> None:
        ledger = Ledger()
        known = {0: Suspicion(1, 3, 2), 1: Suspicion(4, 2, 0), 2: Suspicion(4, 1, 0)}
        await ledger.open(np.ones(3, dtype=np.bool_), known)
        begun = await ledger.begin(FIRST, [0, 1, 2])
        assert begun == Begun((2,), ((1, known[1]),), ((0, known[0]),))

    asyncio.run(run())
