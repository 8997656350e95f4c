"""One evaluation: every message of every task is sent, and what comes back is kept per task."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from latentwire_batch.console import Console
from latentwire_batch.dispatch.watchdog import Guard, guarded
from latentwire_batch.errors import UsageError
from latentwire_batch.evaluation.answers import is_right
from latentwire_batch.evaluation.messages import ANSWERED_NAMES, NAMES, Frame, MessageMaker
from latentwire_batch.evaluation.progress import EvaluationProgress
from latentwire_batch.evaluation.receiver import Receiver, RefusedError, Scored
from latentwire_batch.evaluation.samples import EvaluationSet, Pair

# Tasks refused from the start, after which the others would be refused, too.
_MAX_REFUSED_FIRST = 8

ResultT = TypeVar("ResultT")


class _Task(Protocol):
    @property
    def task_id(self) -> str: ...


PairT = TypeVar("PairT", bound=_Task)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What the messages of one task gave.

    Attributes:
        index: position among the evaluated tasks.
        task_id: of the task.
        scores: of the task's plan, by the name of the message.
        is_right: whether the receiver solved the task, by the name of the message; None for a task
            that was not to be solved.
    """

    index: int
    task_id: str
    scores: Mapping[str, Scored]
    is_right: Mapping[str, bool] | None = None


@dataclass
class Results:
    """The results so far.

    Attributes:
        finished: of each task, in the order in which they came.
        refused: reason by the id of a task that was set aside.
    """

    finished: list[TaskResult] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def in_order(self) -> list[TaskResult]:
        """The finished tasks in the order of the dataset."""
        return sorted(self.finished, key=lambda result: result.index)


@dataclass(frozen=True)
class AnswerPlan:
    """How the receiver solves tasks.

    Attributes:
        expected: answer by the id of the task.
        before: text before the message; `{task}` stands for the task.
        after: text after it.
        max_new_tokens: of a solution.
    """

    expected: Mapping[str, str]
    before: str
    after: str
    max_new_tokens: int

    def frame(self, task: str) -> Frame:
        """Return the texts around a message of this task."""
        return Frame(self.before.replace("{task}", task), self.after)


@dataclass(frozen=True)
class EvaluationPlan:
    """The work of one evaluation.

    Attributes:
        tasks: to evaluate.
        maker: of the messages.
        frame: the texts around a message when a plan is scored.
        answers: how tasks are solved; None: they are not.
    """

    tasks: EvaluationSet
    maker: MessageMaker
    frame: Frame
    answers: AnswerPlan | None = None


async def evaluate(
    plan: EvaluationPlan, receiver: Receiver, guard: Guard, console: Console, results: Results
) -> None:
    """Evaluate all tasks.

    Args:
        plan: the work.
        receiver: reads the messages.
        guard: of its process.
        console: for progress.
        results: filled; they stay when this is cancelled.

    Raises:
        BatchError: the receiver does not answer, or the dataset cannot be read.
        asyncio.CancelledError: a signal ended it.
    """
    cancel_on_sigterm()

    async def score(pair: Pair) -> TaskResult:
        return await _task(plan, receiver, pair)

    num_workers = workers_for(receiver.concurrency, len(NAMES))
    with EvaluationProgress(console, plan.tasks.num_tasks) as progress:
        work = run_tasks(plan.tasks.pairs(), score, results, progress, num_workers)
        await guarded(work, guard)


def workers_for(concurrency: int, num_messages: int) -> int:
    """Return how many tasks are held so that the service never waits for messages.

    Args:
        concurrency: requests in flight.
        num_messages: of one task, which are sent together.
    """
    return 1 + -(-concurrency // num_messages)


def cancel_on_sigterm() -> None:
    """Let SIGTERM cancel the current task, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    # Only the main thread can; on other threads the caller has its own way to stop.
    with suppress(RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def run_tasks(
    pairs: Iterator[PairT],
    score: Callable[[PairT], Awaitable[TaskResult]],
    results: Results,
    progress: EvaluationProgress,
    num_workers: int,
) -> None:
    """Score tasks, several at a time.

    Args:
        pairs: read on a worker thread, one at a time.
        score: raises RefusedError for a task that is set aside.
        results: filled; they stay when this is cancelled.
        progress: advanced by each task.
        num_workers: tasks held at a time.
    """
    reading = asyncio.Lock()

    async def next_pair() -> PairT | None:
        async with reading:
            return await asyncio.to_thread(next, pairs, None)

    async def take_tasks() -> None:
        while (pair := await next_pair()) is not None:
            try:
                results.finished.append(await score(pair))
            except RefusedError as error:
                results.refused[pair.task_id] = str(error)
                _refuse_hopeless(results)
            progress.advance()

    workers = [asyncio.create_task(take_tasks()) for _ in range(num_workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _refuse_hopeless(results: Results) -> None:
    if not results.finished and len(results.refused) >= _MAX_REFUSED_FIRST:
        raise UsageError(
            f"the service refuses the first {len(results.refused)} tasks: "
            f"{next(iter(results.refused.values()))}"
        )


async def _task(plan: EvaluationPlan, receiver: Receiver, pair: Pair) -> TaskResult:
    sample = pair.sample

    async def score(name: str) -> Scored:
        messages = plan.frame.around(plan.maker.part(name, pair))
        return await receiver.score(messages, sample.plan)

    scores = await scored_together(score, NAMES)
    answers = plan.answers
    expected = None if answers is None else answers.expected.get(sample.task_id)
    if answers is None or expected is None:
        return TaskResult(pair.index, sample.task_id, scores)
    wanted, frame, limit = expected, answers.frame(sample.task), answers.max_new_tokens

    async def solve(name: str) -> bool:
        messages = frame.around(plan.maker.part(name, pair))
        return is_right(await receiver.solve(messages, limit), wanted)

    return TaskResult(
        pair.index, sample.task_id, scores, await scored_together(solve, ANSWERED_NAMES)
    )


async def scored_together(
    send: Callable[[str], Awaitable[ResultT]], names: Sequence[str]
) -> dict[str, ResultT]:
    """Send several messages together; when one is refused, the others are cancelled."""
    calls = [asyncio.ensure_future(send(name)) for name in names]
    try:
        return dict(zip(names, await asyncio.gather(*calls), strict=True))
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
