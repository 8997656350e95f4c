"""Failed rows on the terminal: the first of each kind at once, the others counted at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from latentwire_batch.console import Notify

NUM_SHOWN = 3
"""Failed rows of each code that are shown."""
_MAX_CHARS = 240


class FailureReport:
    """Shows rows as they fail. Sixty equal lines would hide all others.

    Args:
        notify: shows a line.
    """

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._by_code: Counter[str] = Counter()

    def add(self, index: int, code: str, message: str) -> None:
        """Show a failed row, unless several failed with the same code."""
        self._by_code[code] += 1
        if self._by_code[code] > NUM_SHOWN:
            return
        reason = " ".join(message.split())[:_MAX_CHARS]
        self._notify(f"row {index} failed: {code}" + (f": {reason}" if reason else ""))
        if self._by_code[code] == NUM_SHOWN:
            self._notify(f"further rows that fail with {code} are only counted")

    def close(self, counts: Mapping[str, int]) -> None:
        """Count the rows that were not shown.

        Args:
            counts: all failed rows by code.
        """
        for code, count in counts.items():
            if count > NUM_SHOWN:
                self._notify(f"{count} rows failed with {code}")
