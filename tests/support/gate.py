"""A call that a test holds back."""

from __future__ import annotations

import threading

TIMEOUT_S = 60


class Gate:
    """Blocks every call until it is opened, and remembers that a call came."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.may_pass = threading.Event()

    def __call__(self) -> None:
        self.is_reached.set()
        assert self.may_pass.wait(TIMEOUT_S)
