"""One synchronous step: schedule, run, sample, hand each request its token and its hidden row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentwire_service.engine.errors import (
    DetokenizationError,
    EngineError,
    LatentInvalidError,
    RequestCancelledError,
)
from latentwire_service.engine.prefix_cache import PrefixCache
from latentwire_service.engine.request import Completion, Request, RequestStatus
from latentwire_service.engine.row_copy import PendingRows, RowCopier
from latentwire_service.engine.runner import ModelRunner, PromptPart, StepOutput
from latentwire_service.engine.sampler import SamplingBatch, sample
from latentwire_service.engine.scheduler import PrefillChunk, Scheduler


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step did, for metrics.

    Attributes:
        num_prompt_tokens: computed.
        num_new_tokens: generated.
        num_running: requests that hold a slot after it.
        num_waiting: requests that have none.
        first_token_s: seconds that each request which got its first token had waited for it.
    """

    num_prompt_tokens: int
    num_new_tokens: int
    num_running: int
    num_waiting: int
    first_token_s: Sequence[float]


class Engine:
    """Continuous batching. Not thread-safe: one thread owns it.

    Args:
        runner: the model over its slots.
        eos_token_ids: tokens that end generation.
        prefill_chunk: prompt positions computed in one step at most.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: ModelRunner,
        eos_token_ids: frozenset[int],
        prefill_chunk: int,
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._copier = RowCopier(runner.device, runner.max_slots, runner.hidden_size)
        self._prefixes = PrefixCache()
        self._first_token_s: list[float] = []
        self._scheduler = Scheduler(runner.max_slots, prefill_chunk, self._prefixes)

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot yet."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return self._scheduler.num_running

    @property
    def num_waiting_by_caller(self) -> Mapping[str, int]:
        """Requests that have no slot yet, of each caller that has any."""
        return self._scheduler.waiting.counts

    def shed(self, error: EngineError) -> None:
        """Fail the newest waiting request of the caller that has the most waiting."""
        self._fail(self._scheduler.waiting.newest_of_the_greediest(), error)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """Drop a request; its slot is free from the next step on. Finished ones are left alone."""
        if not request.is_finished:
            self._fail(request, RequestCancelledError("the request was cancelled"))

    def fail_all(self, error: EngineError) -> None:
        """Fail every request, running and waiting."""
        for request in list(self._scheduler.unfinished()):
            self._fail(request, error)

    def step(self) -> StepStats | None:
        """Run one step; None when there was nothing to do."""
        self._first_token_s = []
        schedule = self._scheduler.schedule(self._clock())
        if schedule.is_empty:
            return None
        for move in schedule.moves:
            self._runner.move_slot(move.source, move.target, move.num_tokens)
        for load in schedule.loads:
            self._runner.load_prefix(load.match.prefix_id, load.slot, load.match.num_tokens)
        if schedule.prefill:
            self._prefill(schedule.prefill)
        if schedule.decode:
            self._decode(schedule.decode, schedule.num_slots)
        return StepStats(
            num_prompt_tokens=sum(chunk.end - chunk.start for chunk in schedule.prefill),
            num_new_tokens=len(schedule.decode) + sum(chunk.is_last for chunk in schedule.prefill),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            first_token_s=self._first_token_s,
        )

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        parts = [
            PromptPart(_slot(c.request), c.request.prompt_token_ids[c.start : c.end], c.start)
            for c in chunks
        ]
        output = self._runner.prefill(parts)
        for chunk in chunks:
            chunk.request.num_prefilled = chunk.end
        complete = [row for row, chunk in enumerate(chunks) if chunk.is_last]
        if complete:
            self._emit([chunks[row].request for row in complete], complete, output)

    def _keep_prefix(self, request: Request) -> None:
        change = self._prefixes.observe(request.prompt_token_ids)
        if change is None:
            return
        for prefix_id in change.evicted_ids:
            self._runner.drop_prefix(prefix_id)
        self._runner.keep_prefix(change.prefix_id, _slot(request), change.num_tokens)

    def _decode(self, requests: Sequence[Request], num_slots: int) -> None:
        token_ids = np.zeros(num_slots, dtype=np.int64)
        positions = np.full(num_slots, self._runner.max_model_len, dtype=np.int64)
        slots = [_slot(request) for request in requests]
        token_ids[slots] = [request.token_ids[-1] for request in requests]
        positions[slots] = [request.num_cached for request in requests]
        self._emit(requests, slots, self._runner.decode(token_ids, positions))

    @torch.inference_mode()
    def _emit(self, requests: Sequence[Request], rows: Sequence[int], output: StepOutput) -> None:
        """Sample the next token of each request from its row; deliver it with its hidden row."""
        logits, hidden = output.logits, output.hidden
        if len(rows) != len(logits):
            index = torch.tensor(rows, device=logits.device)
            logits, hidden = logits[index], hidden[index]
        batch = SamplingBatch.build(
            [request.params for request in requests],
            [len(request.token_ids) for request in requests],
            logits.device,
        )
        # Begun before sampling and awaited after it: on a GPU the two run side by side.
        wanting = [row for row, request in enumerate(requests) if not request.rows.is_full]
        pending = self._start_copy(wanting, hidden)
        sampled = torch.stack(
            [sample(logits, batch), torch.isfinite(hidden).all(dim=-1).long()]
        ).tolist()
        if pending is not None:
            for row, values in zip(wanting, pending.wait(), strict=True):
                requests[row].rows.append(values)
        now = self._clock()
        for request, token_id, is_finite in zip(requests, *sampled, strict=True):
            is_first = request.status is RequestStatus.PREFILL
            if is_first:
                request.status = RequestStatus.DECODE
                request.first_token_at = now
                self._first_token_s.append(now - request.submitted_at)
            if not is_finite:
                self._runner.clear_slot(_slot(request))
                self._fail(request, LatentInvalidError("the model's hidden state is not finite"))
                continue
            if is_first:
                self._keep_prefix(request)
            try:
                request.append_token(token_id, self._eos_token_ids)
            except DetokenizationError as error:
                self._fail(request, error)
                continue
            if request.finish_reason is not None:
                self._finish(request, now)

    def _start_copy(self, wanting: Sequence[int], hidden: torch.Tensor) -> PendingRows | None:
        """Move hidden rows off the device: one copy for all, none for requests that have theirs."""
        if not wanting:
            return None
        if len(wanting) != len(hidden):
            hidden = hidden[torch.tensor(wanting, device=hidden.device)]
        return self._copier.start(hidden)

    def _finish(self, request: Request, now: float) -> None:
        self._scheduler.remove(request)
        try:
            completion = request.completion(now)
        except (LatentInvalidError, DetokenizationError) as error:
            _resolve(request, error)
        else:
            _resolve(request, completion)

    def _fail(self, request: Request, error: EngineError) -> None:
        self._scheduler.remove(request)
        _resolve(request, error)


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot


def _resolve(request: Request, outcome: Completion | EngineError) -> None:
    # A caller that went away has cancelled the future; there is nobody left to tell.
    if not request.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Completion):
        request.future.set_result(outcome)
    else:
        request.future.set_exception(outcome)
