"""The workers of a run, as its first process sees them: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from latentwire.interrupts import interrupted_by_sigterm
from latentwire_batch.console import Console
from latentwire_batch.dispatch.progress import RowFailure
from latentwire_batch.dispatch.tally import Counts
from latentwire_batch.errors import RankLostError, RunInterrupted, UsageError
from latentwire_batch.exit_status import ExitStatus
from latentwire_batch.workers.reports import Report, WorkerCounts

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
        console: for the workers' notices.
    """

    def __init__(self, args: Sequence[str], count: int, launch: str, console: Console) -> None:
        self._args = args
        self._count = count
        self._launch = launch
        self._console = console
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._relays: list[threading.Thread] = []
        self._num_restarts: dict[int, int] = {}
        self._is_stopping = False
        self._reported: dict[int, WorkerCounts] = {}
        self._failures: deque[RowFailure] = deque()

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
                with interrupted_by_sigterm():
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
            self._check()
            await asyncio.sleep(_POLL_S)

    def counts(self) -> Counts:
        """Return what the workers have done so far, as of about a second ago."""
        return sum((counts.total for counts in self._reported.values()), Counts())

    def take_failures(self) -> list[RowFailure]:
        """Return the first failed rows of each kind that were not returned before."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    async def all_done(self) -> None:
        """Wait until the rows of all workers are settled, or until they have ended after a signal.

        Raises:
            RankLostError, UsageError: when one cannot continue.
            RunInterrupted: when they ended because of a signal, before all rows were settled.
        """
        while not self._are_done():
            self._check()
            await asyncio.sleep(_POLL_S)
        # What they wrote last, which the run's final numbers include.
        for relay in self._relays:
            await asyncio.to_thread(relay.join)
        if any(process.returncode != ExitStatus.ALL_ROWS for process in self._processes.values()):
            raise RunInterrupted

    def _are_done(self) -> bool:
        statuses = [process.poll() for process in self._processes.values()]
        if self._is_stopping:
            return None not in statuses
        return all(status == ExitStatus.ALL_ROWS for status in statuses)

    def _check(self) -> None:
        for index, process in list(self._processes.items()):
            status = process.poll()
            if status in (None, ExitStatus.ALL_ROWS) or self._is_stopping:
                continue
            if status in (ExitStatus.FAILED, ExitStatus.USAGE) or self._is_hopeless(index):
                kind = UsageError if status == ExitStatus.USAGE else RankLostError
                raise kind(
                    f"worker {index} cannot continue; finished rows are kept, rerun the same "
                    "command to resume"
                )
            self._console.say(f"worker {index} ended early and is started again")
            self._num_restarts[index] = self._num_restarts.get(index, 0) + 1
            # Not awaited: `watch` and `all_done` must not both start it.
            self._start(index)

    def _is_hopeless(self, index: int) -> bool:
        return self._num_restarts.get(index, 0) >= _MAX_RESTARTS

    def _start(self, index: int) -> None:
        names = [str(index), str(self._count), self._launch]
        process = subprocess.Popen(
            [sys.executable, "-m", "latentwire_batch.workers.worker", *names, *self._args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # Away from the terminal's signals.
            start_new_session=True,
        )
        self._processes[index] = process
        counts = self._reported.setdefault(index, WorkerCounts())
        for relay in (
            threading.Thread(target=self._relay, args=(process, index), daemon=True),
            threading.Thread(target=self._take_reports, args=(process, counts), daemon=True),
        ):
            relay.start()
            self._relays.append(relay)

    def _relay(self, process: subprocess.Popen[str], index: int) -> None:
        assert process.stderr is not None
        name = f"{command_of(index)}: "
        with process.stderr:
            for line in process.stderr:
                text = line.rstrip()
                # All workers tell the same of the replicas that they share.
                if text.startswith(name):
                    self._console.relay(text.removeprefix(name))
                else:
                    self._console.say(name + text)

    def _take_reports(self, process: subprocess.Popen[str], counts: WorkerCounts) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                report = Report.from_line(line)
                if report is not None:
                    counts.take(report)
                    self._failures.extend(report.failures)
        counts.note_end()

    def _end(self) -> None:
        """End all workers at once."""
        self.interrupt()
        time.sleep(_POLL_S)
        self.interrupt()
        deadline_s = time.monotonic() + _END_PATIENCE_S
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))


def command_of(index: int) -> str:
    """Return what a worker puts in front of its notices."""
    return f"worker {index}"
