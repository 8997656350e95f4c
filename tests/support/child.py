"""A service in a child process; the tests read its standard error as it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

TIMEOUT_S = 90


class Child:
    """A service in a child process.

    A thread reads its standard error as it is written.
    """

    def __init__(
        self,
        *args: str,
        command: Sequence[str] = ("-m", "latentwire_service"),
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command, *args],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait_line(self, part: str) -> str:
        """Wait for a line that holds `part`, and return it."""

        def found() -> str | None:
            return next((line for line in self.lines if part in line), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() or self._is_over, TIMEOUT_S)
            line = found()
        assert line is not None, self.output
        return line

    @property
    def url(self) -> str:
        return self.wait_line("listening on http").split()[-1]

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdin, self.process.stderr):
            assert stream is not None
            stream.close()
