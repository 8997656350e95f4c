from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.gate import TIMEOUT_S


class WatchedStream(io.StringIO):
    """A standard error whose readers can wait for a text."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            written = super().write(text)
            self._changed.notify_all()
        return written

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.getvalue(), timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Ended:
    status: int
    stderr: str


Collect = Callable[..., Ended]


def write_tasks(path: Path, count: int) -> Path:
    lines = [json.dumps({"id": f"t{i}", "task": f"Clean window {i} — ☀"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path
