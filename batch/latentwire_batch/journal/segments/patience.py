"""Trying again what may work the next time, for a minute at most."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from latentwire.retry import retry_delay
from latentwire_batch.errors import LocationError

ResultT = TypeVar("ResultT")
_MAX_RETRIES = 12


def patiently(
    call: Callable[[], ResultT],
    rng: random.Random | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ResultT:
    """Call, and again after growing pauses while the store fails for a reason that may pass.

    Args:
        call: repeating it must be harmless.
        rng: of the pauses.
        sleep: waits for so many seconds.

    Raises:
        LocationError: of the last try.
    """
    rng = rng or random.Random()
    for num_failures in range(_MAX_RETRIES):
        try:
            return call()
        except LocationError as error:
            if error.is_users:
                raise
            sleep(retry_delay(num_failures, None, rng))
    return call()
