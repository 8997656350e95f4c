from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from functools import partial

import pytest

from latentwire_batch.dispatch import appender as module
from latentwire_batch.dispatch.appender import Appender


@pytest.fixture
def is_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items wait for others until something else hands them over."""
    monkeypatch.setattr(module, "_QUICK_S", math.inf)
    monkeypatch.setattr(module, "_HOLD_S", 1000.0)


def test_calls_run_in_their_order_and_each_caller_gets_its_own_error() -> None:
    async def main() -> None:
        ran: list[object] = []
        appender = Appender[object](ran.append)

        def call(number: int) -> None:
            ran.append(number)
            if number % 2:
                raise ValueError(number)

        calls = (appender.run(partial(call, number)) for number in range(6))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert ran == list(range(6))
        assert [str(result) for result in results] == ["None", "1", "None", "3", "None", "5"]
        await asyncio.to_thread(appender.close)

    asyncio.run(main())


def test_closing_waits_for_the_call_that_runs_and_drops_the_others() -> None:
    async def main() -> None:
        ran: list[object] = []
        appender = Appender[object](ran.append)

        has_begun = threading.Event()

        def first() -> None:
            has_begun.set()
            while not appender._is_closed:
                time.sleep(0.001)
            ran.append("first")

        tasks = [asyncio.create_task(appender.run(first))]
        tasks += [asyncio.create_task(appender.run(lambda: ran.append("second")))]
        await asyncio.to_thread(has_begun.wait, 60)
        await asyncio.to_thread(appender.close)
        await tasks[0]
        assert ran == ["first"]
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        # Closing it twice is no error.
        await asyncio.to_thread(appender.close)
        with pytest.raises(RuntimeError):
            await appender.run(lambda: None)

    asyncio.run(main())


def test_a_call_that_was_cancelled_while_it_waited_does_not_run() -> None:
    async def main() -> None:
        ran: list[object] = []
        appender = Appender[object](ran.append)
        may_end = threading.Event()
        first = asyncio.create_task(appender.run(lambda: ran.append(may_end.wait(60))))
        second = asyncio.create_task(appender.run(lambda: ran.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        may_end.set()
        await first
        await appender.run(lambda: ran.append("third"))
        assert ran == [True, "third"]
        await asyncio.to_thread(appender.close)

    asyncio.run(main())


@pytest.mark.usefixtures("is_patient")
def test_items_share_a_write_until_there_are_enough_or_a_call_follows() -> None:
    async def main() -> None:
        done: list[object] = []
        appender = Appender[int](lambda values: done.append(list(values)))
        items = [appender.append(number) for number in range(11)]
        call = appender.run(lambda: done.append("call"))
        await asyncio.gather(*items, call, appender.run(lambda: done.append("call")))
        # The first one did not follow another.
        assert done == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10], "call", "call"]
        kept = asyncio.create_task(appender.append(11))
        cancelled = asyncio.create_task(appender.append(12))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        await asyncio.gather(appender.append(13), appender.run(lambda: None), kept)
        assert done[5:] == [[11, 13]]
        dropped = asyncio.create_task(appender.append(14))
        await asyncio.sleep(0)
        await asyncio.to_thread(appender.close)
        assert done[6:] == []
        dropped.cancel()
        with pytest.raises(RuntimeError):
            await appender.append(15)

    asyncio.run(main())


def test_items_that_nothing_follows_are_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        done: list[int] = []
        appender = Appender[int](done.extend)
        # The first one in a long time waits for no other.
        monkeypatch.setattr(module, "_HOLD_S", 1000.0)
        await appender.append(0)
        monkeypatch.setattr(module, "_QUICK_S", math.inf)
        monkeypatch.setattr(module, "_HOLD_S", 0.001)
        for number in range(1, 4):
            await appender.append(number)
        assert done == [0, 1, 2, 3]
        await asyncio.to_thread(appender.close)

    asyncio.run(main())


@pytest.mark.usefixtures("is_patient")
def test_an_item_that_cannot_be_appended_costs_no_other() -> None:
    async def main() -> None:
        done: list[int] = []

        def append_all(values: Sequence[int]) -> None:
            for value in values:
                if value % 3 == 1:
                    raise ValueError(value)
            done.extend(values)

        appender = Appender[int](append_all)
        items = [appender.append(number) for number in range(9)]
        results = await asyncio.gather(*items, return_exceptions=True)
        assert [str(result) for result in results] == [
            *("None", "1", "None", "None", "4", "None", "None", "7", "None")
        ]
        assert done == [0, 2, 3, 5, 6, 8]
        await asyncio.to_thread(appender.close)

    asyncio.run(main())
