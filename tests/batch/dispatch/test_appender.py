from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from latentwire_batch.dispatch.appender import Appender


def test_calls_run_in_their_order_and_each_caller_gets_its_own_error() -> None:
    async def main() -> None:
        appender = Appender()
        ran: list[object] = []

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
        appender = Appender()
        ran: list[object] = []

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
        appender = Appender()
        ran: list[object] = []
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
