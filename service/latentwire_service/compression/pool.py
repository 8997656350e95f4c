"""Threads that compress latents, apart from the event loop and from the engine.

A compressor may be a stranger's code: it may raise, return anything, or never return. Only the
requests that name it are harmed.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from latentwire.compressors import COMPRESSED, Compressor
from latentwire.compressors.base import Rows, is_array_name
from latentwire_service.engine.errors import EngineError, QueueFullError

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_NUM_THREADS = min(4, os.cpu_count() or 1)
# Latents that wait for a thread: each holds up to megabytes.
MAX_PENDING = 128
_RETRY_AFTER_S = 1.0
# Names of tensors in binary answers: an array of this name would be taken for the scales.
_RESERVED = "scales"


class CompressionFailedError(EngineError):
    """A compressor raised, or returned something that is no compressed latent."""


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A compressed latent.

    Attributes:
        compressor: which made it.
        rows: `[K, D]` float32, finite.
        arrays: further arrays, 2-D float32, by name.
    """

    compressor: Compressor
    rows: Rows
    arrays: Mapping[str, Rows] = field(default_factory=dict)


class CompressionPools:
    """Pools of threads: one for each compressor of another package, and one for all others.

    A compressor that never returns keeps its thread, and would in time keep those of the others.
    """

    def __init__(self) -> None:
        self._pools: dict[str | None, CompressionPool] = {}

    def of(self, package: str | None) -> CompressionPool:
        """Return a pool; call it on the event loop.

        Args:
            package: name of the compressor, if it is of another package; None for the others.
        """
        return self._pools.setdefault(package, CompressionPool())

    @property
    def is_busy(self) -> bool:
        """Whether a thread runs a compressor, perhaps one that never returns."""
        return any(pool.is_busy for pool in list(self._pools.values()))


class CompressionPool:
    """Runs compressors.

    Args:
        num_threads: latents that are compressed at the same time.
        max_pending: compressions that run or wait, at which new requests are refused.
    """

    def __init__(self, num_threads: int = _NUM_THREADS, max_pending: int = MAX_PENDING) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="compressor")
        self._max_pending = max_pending
        self._num_pending = 0
        self._num_running = 0
        self._lock = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a thread runs a compressor, perhaps one that never returns."""
        return self._num_running > 0

    def check_room(self) -> None:
        """Do nothing while compressors keep up with the engine.

        Raises:
            QueueFullError: too many latents wait for a compressor.
        """
        if self._num_pending >= self._max_pending:
            raise QueueFullError(self._max_pending, _RETRY_AFTER_S)

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Call a function on a thread of the pool.

        Cancelling drops work that has not begun; work that has begun ends on its own.
        """
        context = contextvars.copy_context()
        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(context.run, self._counted, work)
            )
        finally:
            self._num_pending -= 1

    def _counted(self, work: Callable[[], ResultT]) -> ResultT:
        with self._lock:
            self._num_running += 1
        try:
            return work()
        except Exception:
            raise
        except BaseException as error:
            # A package that calls `sys.exit` must not end the event loop, which would raise it.
            raise CompressionFailedError(f"a compressor raised {type(error).__name__}") from None
        finally:
            with self._lock:
                self._num_running -= 1


def compress(compressor: Compressor, rows: Rows) -> Compressed:
    """Compress a latent, and check what comes back.

    Args:
        compressor: may be a stranger's.
        rows: `[L, H]` float32; no write reaches it.

    Raises:
        CompressionFailedError: the message holds no values, so that logs hold none.
    """
    view = rows.view()
    view.flags.writeable = False
    try:
        arrays = dict(compressor.compress(view))
    except Exception as error:
        # The boundary to a stranger's code. Its message may quote values of the latent.
        logger.debug("compressor %s failed", compressor.name, exc_info=error)
        raise CompressionFailedError(
            f"compressor {compressor.name} raised {type(error).__name__} at {_origin(error)}"
        ) from None
    fault = _fault(arrays, len(rows), compressor.k)
    if fault is not None:
        raise CompressionFailedError(f"compressor {compressor.name} returned {fault}")
    return Compressed(compressor, arrays.pop(COMPRESSED), arrays)


def _fault(arrays: Mapping[str, Rows], num_rows: int, k: int | None) -> str | None:
    """Say what is wrong with the result of a compressor; None: nothing."""
    if COMPRESSED not in arrays:
        return f"no {COMPRESSED}"
    for name, array in arrays.items():
        if not is_array_name(name) or name == _RESERVED:
            return "an array of a name that is not allowed"
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
            return f"{name} that is no float32 matrix"
        if not np.isfinite(array).all():
            return f"{name} with a value that is not finite"
    num_kept = len(arrays[COMPRESSED])
    most = num_rows if k is None else min(k, num_rows)
    return None if num_kept <= most else f"{num_kept} rows, of which {most} are allowed"


def _origin(error: BaseException) -> str:
    """Return `file:line` of the innermost frame, without the file's path."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    return f"{os.path.basename(frame.f_code.co_filename)}:{line}"
