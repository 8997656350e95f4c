"""What a child process wrote last: the reason when it could not start. Pure."""

from __future__ import annotations

import json
from collections import deque

_KEPT_LINES = 12
_ERROR_LEVELS = frozenset({"error", "critical"})


class ChildOutput:
    """Keeps the last lines of a service's standard error, and the last errors it logged.

    A line is a record of the service's JSON log, or plain text that was written before the log was
    set up, such as a refused flag or a traceback.
    """

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def add(self, line: str) -> None:
        """Take in one line, without its line feed."""
        level, text = _parse(line)
        self._lines.append(text)
        if level in _ERROR_LEVELS:
            self._errors.append(text)

    @property
    def reason(self) -> str:
        """The logged errors; without any, the end of the output."""
        return "\n".join(self._errors or self._lines)


def _parse(line: str) -> tuple[str | None, str]:
    """Split a line into its level and a readable text; plain text has no level."""
    try:
        record = json.loads(line)
        level, text = str(record["level"]), f"{record['logger']}: {record['message']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, line
    if "exception" in record:
        text += f"\n{record['exception']}"
    return level, f"{level.upper()} {text}"
