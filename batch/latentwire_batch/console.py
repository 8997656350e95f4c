"""Notices for the user: one line each, on standard error.

Notices never hold task texts, plans, keys, addresses of replicas or absolute paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

# Shows one line to the user. Most of the package gets this instead of a Console.
Notify = Callable[[str], None]


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

    def say(self, text: str) -> None:
        """Write one line."""
        line = f"{self.command}: {text}"
        if self._printer is not None:
            self._printer(line)
            return
        self.stream.write(line + "\n")
        self.stream.flush()

    def redirect(self, printer: Callable[[str], None] | None) -> None:
        """Send lines to `printer`; None sends them to the stream again."""
        self._printer = printer
