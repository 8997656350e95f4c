"""The workers of a run, as its first process sees them: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from latentwire_batch.console import Notify
from latentwire_batch.errors import RankLostError, RunInterrupted
from latentwire_batch.exit_status import ExitStatus

_POLL_S = 0.2
# Of each worker.
_MAX_RESTARTS = 3
_END_PATIENCE_S = 15.0


class Workers:
    """The processes besides the first one. Used as a context, which starts and ends them.

    A worker that is killed is started again, and continues where its log ends. Signals of the
    terminal reach only the first process, which passes them on, so that no worker gets one twice.

    Args:
        args: the command line of `collect`.
        count: workers, the first process included.
        launch: identifies the launch.
        notify: receives the workers' notices.
    """

    def __init__(self, args: Sequence[str], count: int, launch: str, notify: Notify) -> None:
        self._args = args
        self._count = count
        self._launch = launch
        self._notify = notify
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._relays: list[threading.Thread] = []
        self._num_restarts: dict[int, int] = {}
        self._is_stopping = False

    def __enter__(self) -> Self:
        """Start the workers."""
        for index in range(1, self._count):
            self._start(index)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the workers that still run: after an interrupt, they finish their rows in flight."""
        try:
            if isinstance(error, RunInterrupted):
                if not self._is_stopping:
                    self.interrupt()
                for process in self._processes.values():
                    process.wait()
            elif error is not None:
                self._end()
        except KeyboardInterrupt:
            self._end()
            raise
        finally:
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
            for relay in self._relays:
                relay.join()

    def interrupt(self) -> None:
        """Pass on a signal: after the first, workers finish their rows; after the second, not."""
        self._is_stopping = True
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def watch(self) -> None:
        """Start workers again that were killed, until cancelled.

        Raises:
            RankLostError: when one cannot continue.
        """
        while True:
            await self._check()
            await asyncio.sleep(_POLL_S)

    async def others_done(self) -> None:
        """Wait until the rows of all workers are settled.

        Raises:
            RankLostError: when one cannot continue.
            RunInterrupted: when a signal ended them.
        """
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread can; on other threads the caller has its own way to stop.
            with suppress(RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        while any(process.poll() != ExitStatus.ALL_ROWS for process in self._processes.values()):
            await self._check()
            if self._is_stopping:
                raise RunInterrupted
            await asyncio.sleep(_POLL_S)

    async def _check(self) -> None:
        for index, process in list(self._processes.items()):
            status = process.poll()
            if status in (None, ExitStatus.ALL_ROWS) or self._is_stopping:
                continue
            if status in (ExitStatus.FAILED, ExitStatus.USAGE) or self._is_hopeless(index):
                raise RankLostError(
                    f"worker {index} cannot continue; finished rows are kept, rerun the same "
                    "command to resume"
                )
            self._notify(f"worker {index} ended early and is started again")
            self._num_restarts[index] = self._num_restarts.get(index, 0) + 1
            await asyncio.to_thread(self._start, index)

    def _is_hopeless(self, index: int) -> bool:
        return self._num_restarts.get(index, 0) >= _MAX_RESTARTS

    def _start(self, index: int) -> None:
        names = [str(index), str(self._count), self._launch]
        process = subprocess.Popen(
            [sys.executable, "-m", "latentwire_batch.workers.worker", *names, *self._args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # Away from the terminal's signals.
            start_new_session=True,
        )
        self._processes[index] = process
        relay = threading.Thread(target=self._relay, args=(process,), daemon=True)
        relay.start()
        self._relays.append(relay)

    def _relay(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._notify(line.rstrip())

    def _end(self) -> None:
        """End all workers at once."""
        self.interrupt()
        time.sleep(_POLL_S)
        self.interrupt()
        deadline_s = time.monotonic() + _END_PATIENCE_S
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
