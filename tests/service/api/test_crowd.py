"""Many callers of a small queue: each is refused for a while, and each gets its plan."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from latentwire import AsyncClient, LatentwireError, PlanLatent, QueueFullError
from support.backends import Faults
from support.gate import Gate
from support.live_server import LiveServer

pytestmark = pytest.mark.backends("fake")

NUM_CALLS, MAX_SLOTS, MAX_QUEUE = 100, 4, 20
# Pauses of seconds become some of milliseconds; the client's deadline counts the seconds.
HASTE = 100
# Of each call that finds the queue full.
NUM_REFUSALS = 6


def test_every_caller_of_a_full_queue_gets_its_plan(
    start: Callable[..., LiveServer], gate: Gate
) -> None:
    live = start(Faults(before_decode=gate), max_slots=MAX_SLOTS, max_queue=MAX_QUEUE).wait_ready()
    refusals: list[LatentwireError] = []

    def on_retry(error: LatentwireError, _pause_s: float) -> None:
        refusals.append(error)
        # No slot is free before all but the accepted calls were refused so often.
        if len(refusals) == NUM_REFUSALS * (NUM_CALLS - MAX_SLOTS - MAX_QUEUE):
            gate.may_pass.set()

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / HASTE)

    async def plans() -> list[PlanLatent]:
        async with AsyncClient(
            live.url, on_retry=on_retry, sleep=sleep, rng=random.Random(7)
        ) as client:
            calls = [
                client.plan_latent(f"task {index}", k=1, max_new_tokens=2, do_sample=False)
                for index in range(NUM_CALLS)
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(plans())
    assert [answer.task for answer in answers] == [f"task {index}" for index in range(NUM_CALLS)]
    assert all(isinstance(error, QueueFullError) and error.retry_after_s for error in refusals)
    for count, status in ((NUM_CALLS, "200"), (len(refusals), "429")):
        live.wait_metric(count, "latentwire_requests_total", path="/plan_latent", status=status)
