"""How rows get from the driver, which reads them, to the replicas on Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from latentwire_batch.config import CollectSettings
from latentwire_batch.errors import InputError
from latentwire_batch.ray.cluster import Placement
from latentwire_batch.ray.feed import _NUM_AHEAD, Feed
from latentwire_batch.ray.stream import Stream
from latentwire_batch.tasks.rows import Row


def rows(num_rows: int) -> list[Row]:
    return [Row(index, f"t{index}", f"task {index}") for index in range(num_rows)]


async def settled() -> None:
    """Let all tasks run until each of them waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_only_the_blocks_that_are_taken_and_a_few_more_are_in_memory() -> None:
    async def run() -> None:
        feed, num_blocks, given = Feed(), 5 * _NUM_AHEAD, rows(5 * _NUM_AHEAD)

        async def give() -> None:
            for number, row in enumerate(given):
                assert await feed.give(number, [row])

        giving = asyncio.create_task(give())
        await settled()
        assert feed.num_blocks == _NUM_AHEAD
        for number in range(num_blocks):
            assert await feed.take(number) == [given[number]]
            await settled()
            # This one, the one before it, and those that wait.
            assert feed.num_blocks <= 2 + _NUM_AHEAD
            feed.drop(number - 1)
        await giving

    asyncio.run(run())


def test_a_block_can_be_taken_again_until_all_its_rows_are_settled() -> None:
    async def run() -> None:
        feed = Feed()
        for number, row in enumerate(rows(2)):
            await feed.give(number, [row])
        for _ in range(2):
            assert await feed.take(0) == rows(1)
        feed.drop(0)
        assert await feed.take(0) == ()
        assert await feed.take(1) == rows(2)[1:]

    asyncio.run(run())


@pytest.mark.parametrize("ends", [False, True])
def test_replicas_wait_for_rows_that_are_not_read_yet_unless_the_run_ends(ends: bool) -> None:
    async def run() -> None:
        feed = Feed()
        taking = [asyncio.create_task(feed.take(number)) for number in (1, 0)]
        await settled()
        assert not any(task.done() for task in taking)
        if ends:
            await feed.close()
            assert not await feed.give(0, rows(1))
            assert await asyncio.gather(*taking) == [(), ()]
        else:
            for number in (0, 1):
                assert await feed.give(number, rows(number + 1))
            assert await asyncio.gather(*taking) == [rows(2), rows(1)]

    asyncio.run(run())


def _never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


class Handle:
    """A ledger whose blocks are all taken, called as Ray calls actors."""

    def __init__(self) -> None:
        self.blocks: dict[int, Sequence[Row]] = {}
        self.is_wanted = True
        self.give = MagicMock()
        self.give.remote = self._give

    async def _give(self, number: int, block: Sequence[Row]) -> bool:
        self.blocks[number] = block
        return self.is_wanted


def stream_of(given: Iterator[Row], num_rows: int, handle: Handle) -> Stream:
    settings = CollectSettings(dataset=("x",), output_dir=Path("out"), concurrency=1)
    job = MagicMock(settings=settings, parts=None)
    return Stream(given, num_rows, job, handle, Placement(1, 1, 0))


@pytest.mark.parametrize("num_rows", [0, 1, 64, 100])
def test_each_number_that_ray_hands_out_has_a_block(num_rows: int) -> None:
    handle = Handle()
    stream = stream_of(iter(rows(num_rows)), num_rows, handle)
    asyncio.run(stream._feed())
    # Also where there are no rows: the replica's model is known once it takes a block.
    assert handle.blocks
    assert list(handle.blocks) == list(range(stream._num_blocks))
    assert [row for block in handle.blocks.values() for row in block] == rows(num_rows)


def test_rows_are_not_read_once_the_run_ends() -> None:
    handle, given = Handle(), iter(rows(1000))
    handle.is_wanted = False
    asyncio.run(stream_of(given, 1000, handle)._feed())
    assert len(list(given)) == 1000 - len(handle.blocks[0])


@pytest.mark.parametrize("num_read", [0, 50, 99])
def test_an_input_that_has_lost_rows_ends_the_run(
    num_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray still waits for rows then."""
    handle = Handle()
    stream = stream_of(iter(rows(num_read)), 100, handle)
    monkeypatch.setattr(
        stream, "_start_draining", lambda: asyncio.get_running_loop().create_future()
    )
    with pytest.raises(InputError, match="has fewer rows than when it was first read"):
        asyncio.run(stream.run())
    assert sum(len(block) for block in handle.blocks.values()) <= num_read
