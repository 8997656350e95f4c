"""Where notices for the person at the terminal go: standard error, one line each.

Notices never hold task texts, plans, keys, addresses of replicas or absolute paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

# Tells the person something in one line; what the rest of the package gets instead of a Console.
Notify = Callable[[str], None]


class Console:
    """Writes notices with the command's name in front.

    While a progress bar is drawn its own printer takes over, so that the two do not overwrite each
    other.

    Args:
        stream: standard error.
        command: put in front of every line.
        shows_progress: False leaves out the bar, and the lines that take its place in a log.
        draws_bar: False leaves out just the bar; none is drawn outside a terminal.
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
        """Send lines through `printer`, or to the stream again when None."""
        self._printer = printer
