"""Notices for the user: one line each, on standard error.

Notices never hold task texts, plans, keys, addresses of replicas or absolute paths. A path below
the current directory is shown from there, and another one by its end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

# Shows one line to the user. Most of the package gets this instead of a Console.
Notify = Callable[[str], None]

# Processes of one run notice the same event at about the same time.
_RECENT_S = 10.0
_NUM_RECENT = 64


@dataclass(frozen=True)
class _Said:
    """A line that was written.

    Attributes:
        text: of the line.
        at_s: when, `time.monotonic` seconds.
        is_relayed: whether it came from another process.
    """

    text: str
    at_s: float
    is_relayed: bool


class Console:
    """Writes notices, each with the command's name in front.

    A progress bar takes over the printing while it is drawn, so that bar and notices do not
    overwrite each other.

    Args:
        stream: standard error.
        command: put in front of every line.
        shows_progress: False leaves out the bar, and the lines that replace it in a log.
        draws_bar: False leaves out only the bar, which needs a terminal in any case.
    """

    def __init__(
        self,
        stream: TextIO,
        command: str = "latentwire collect",
        shows_progress: bool = True,
        draws_bar: bool = True,
    ) -> None:
        self.stream = stream
        self.command = command
        self.shows_progress = shows_progress
        self.draws_bar = shows_progress and draws_bar and stream.isatty()
        self._printer: Callable[[str], None] | None = None
        self._recent: deque[_Said] = deque(maxlen=_NUM_RECENT)

    def say(self, text: str) -> None:
        """Write one line, unless `relay` has just written it."""
        if not self._was_said(text, only_relayed=True):
            self._recent.append(_Said(text, time.monotonic(), is_relayed=False))
            self._write(text)

    def relay(self, text: str) -> None:
        """Write a notice of another process of this run, unless the same one was just written."""
        if not self._was_said(text):
            self._recent.append(_Said(text, time.monotonic(), is_relayed=True))
            self._write(text)

    def _was_said(self, text: str, only_relayed: bool = False) -> bool:
        since_s = time.monotonic() - _RECENT_S
        return any(
            said.text == text and said.at_s > since_s and said.is_relayed >= only_relayed
            for said in list(self._recent)
        )

    def _write(self, text: str) -> None:
        line = f"{self.command}: {text}"
        if self._printer is not None:
            self._printer(line)
            return
        self.stream.write(line + "\n")
        self.stream.flush()

    def redirect(self, printer: Callable[[str], None] | None) -> None:
        """Send lines to `printer`; None sends them to the stream again."""
        self._printer = printer
