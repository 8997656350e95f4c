"""SIGTERM in commands that handle no signals themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl-C, where no event loop handles it.

    Only the main thread may do that; in another one, signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Restore what SIGTERM does after code that changes it, like an event loop or Ray's start."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)
