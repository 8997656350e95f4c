"""Notices that a process which still runs has stopped working. Knows only a probe and a clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from latentwire import LatentwireError

_INTERVAL_S = 5.0
# A busy machine may delay an answer by seconds. A process that is stopped, or whose engine hangs,
# never answers again.
HANG_PATIENCE_S = 60.0


async def until_hung(
    probe: Callable[[], Awaitable[bool]],
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return when a process that has been healthy was not so for too long.

    Before its first answer, it may load for hours.

    Args:
        probe: whether the process is healthy now; may raise LatentwireError instead.
        patience_s: longest time without health, in seconds.
        clock: in seconds; only differences count.
        sleep: awaited between two probes; waits for a number of seconds.
    """
    healthy_at_s: float | None = None
    while True:
        try:
            is_healthy = await probe()
        except LatentwireError:
            is_healthy = False
        now_s = clock()
        if is_healthy:
            healthy_at_s = now_s
        elif healthy_at_s is not None and now_s - healthy_at_s >= patience_s:
            return
        await sleep(min(_INTERVAL_S, patience_s / 4))
