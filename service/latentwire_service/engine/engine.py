"""One synchronous step: schedule, run, sample, deliver each request's step and hidden row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from latentwire_service.engine.backend import GenerationSpec, OnStep, StepStats
from latentwire_service.engine.detokenizer import Tokenizer, special_tokens
from latentwire_service.engine.errors import (
    DetokenizationError,
    EngineError,
    LatentInvalidError,
    RequestCancelledError,
)
from latentwire_service.engine.logits import LogitsChanges, RowLogitsFactory
from latentwire_service.engine.passes.latent_steps import LatentSteps
from latentwire_service.engine.passes.outputs import Computed, OutputReader
from latentwire_service.engine.passes.scoring import Scores, score
from latentwire_service.engine.prefix_cache import PrefixCache
from latentwire_service.engine.request import Request, RequestStatus
from latentwire_service.engine.row_copy import RowCopier
from latentwire_service.engine.runner import ModelRunner, PromptPart, StepOutput
from latentwire_service.engine.scheduler import PrefillChunk, Scheduler


class Engine:
    """Continuous batching. One thread owns it; other threads may call `new_request` only.

    Args:
        runner: the model over its slots.
        tokenizer: turns tokens into text.
        eos_token_ids: tokens that end generation.
        prefill_chunk: most prompt positions computed in one step.
        clock: seconds, monotonic.
        make_row_logits: makes the changes to a request's logits, as the model's files and the
            request name them.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        prefill_chunk: int,
        clock: Callable[[], float],
        make_row_logits: RowLogitsFactory = lambda _spec: None,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self._changes = LogitsChanges(make_row_logits)
        self._latents = LatentSteps(runner.embedding_size)
        copier = RowCopier(runner.device, runner.max_slots, runner.hidden_size)
        self._reader = OutputReader(self._changes, self._latents, copier)
        self._prefixes = PrefixCache()
        self._scheduler = Scheduler(
            runner.max_slots, prefill_chunk, self._prefixes, runner.max_outputs
        )

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
        """Waiting requests of each caller that has any."""
        return self._scheduler.waiting.counts

    def new_request(self, spec: GenerationSpec, on_step: OnStep | None = None) -> Request:
        """Make a request, submitted now. Nothing runs before it is passed to `add`.

        Any thread may call this: the time until `add` counts as waiting.
        """
        return Request(
            spec,
            self._runner.hidden_size,
            self._tokenizer,
            on_step,
            self._clock(),
            self._special,
        )

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._scheduler.add(request)

    def displace(self, caller: str, error: EngineError) -> None:
        """Fail the newest waiting request of a caller that has one."""
        self._fail(self._scheduler.waiting.newest_of(caller), error)

    def cancel(self, request: Request) -> None:
        """Drop a request; its slot is free from the next step on. A finished one stays as it is."""
        if not request.is_finished:
            # Nothing has shown yet that the model computes the given embeddings to numbers.
            if request.status is RequestStatus.PREFILL and request.spec.prompt.embeddings:
                self._runner.clear_slot(_slot(request))
            self._fail(request, RequestCancelledError("the request was cancelled"))

    def fail_all(self, error: EngineError) -> None:
        """Fail every request, running and waiting."""
        for request in list(self._scheduler.unfinished()):
            self._fail(request, error)

    def step(self) -> StepStats | None:
        """Run one step; return None when there is nothing to do."""
        schedule = self._scheduler.schedule(self._clock())
        if schedule.is_empty:
            return None
        for move in schedule.moves:
            self._runner.move_slot(move.source, move.target, move.num_tokens)
        for load in schedule.loads:
            self._runner.load_prefix(load.match.prefix_id, load.slot, load.match.num_tokens)
        complete = [c.request for c in schedule.prefill if c.is_last and not c.request.is_given]
        stepping = [*schedule.decode, *complete]
        num_latent_steps = sum(request.is_latent for request in stepping)
        first_token_s: list[float] = []
        if schedule.prefill:
            first_token_s += self._prefill(schedule.prefill)
        if schedule.decode:
            first_token_s += self._decode(schedule.decode, schedule.num_slots)
        return StepStats(
            num_prompt_tokens=sum(chunk.end - chunk.start for chunk in schedule.prefill),
            num_new_tokens=len(stepping) - num_latent_steps,
            first_token_s=first_token_s,
            num_latent_steps=num_latent_steps,
        )

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> Sequence[float]:
        """Compute prompt chunks; return the time to first token of each request that gets one."""
        parts = [
            PromptPart(
                _slot(chunk.request),
                chunk.request.prefill_prompt.slice(chunk.start, chunk.end),
                chunk.start,
                max(1, chunk.num_scored),
            )
            for chunk in chunks
        ]
        output = self._runner.prefill(parts)
        for chunk in chunks:
            chunk.request.advance_prefill(chunk.end)
        # Each part's last row of the output.
        last_rows = [end - 1 for end in accumulate(part.num_outputs for part in parts)]
        scored = [pair for pair in zip(chunks, last_rows, strict=True) if pair[0].num_scored]
        if scored:
            self._score(scored, output)
        complete = [
            (chunk.request, row)
            for chunk, row in zip(chunks, last_rows, strict=True)
            if chunk.is_last and not chunk.request.is_given
        ]
        if not complete:
            return ()
        requests = [request for request, _ in complete]
        computed = self._reader.read(requests, [row for _, row in complete], output)
        now = self._clock()
        waits = [request.start_decode(now) for request in requests]
        first_token_s = [
            wait for request, wait in zip(requests, waits, strict=True) if not request.is_latent
        ]
        for request, is_finite in zip(requests, computed.is_finite, strict=True):
            # A prompt that the model cannot compute teaches no prefix.
            if is_finite:
                self._keep_prefix(request)
        self._deliver(requests, computed, now)
        return first_token_s

    def _score(self, scored: Sequence[tuple[PrefillChunk, int]], output: StepOutput) -> None:
        """Give requests the rows and scores of given tokens.

        Args:
            scored: chunks that score positions, each with its last row of the output.
            output: of the pass.
        """
        indices: list[int] = []
        token_ids: list[int] = []
        for chunk, last_row in scored:
            given, start = chunk.request.spec.given_token_ids or (), len(chunk.request.token_ids)
            indices += range(last_row + 1 - chunk.num_scored, last_row + 1)
            token_ids += given[start : start + chunk.num_scored]
        scores = score(output, indices, token_ids)
        now = self._clock()
        at = 0
        for chunk, _ in scored:
            self._deliver_scores(chunk, scores.part(at, at + chunk.num_scored), now)
            at += chunk.num_scored

    def _deliver_scores(self, chunk: PrefillChunk, scores: Scores, now: float) -> None:
        request = chunk.request
        if not all(scores.is_valid):
            self._runner.clear_slot(_slot(request))
            self._fail(request, LatentInvalidError("the model's hidden state is not finite"))
            return
        for row, logprob in zip(scores.rows, scores.token_logprobs, strict=True):
            if not request.rows.is_full:
                request.rows.append(row)
            try:
                reason = request.append_given(logprob, now)
            except DetokenizationError as failure:
                self._fail(request, failure)
                return
        if reason is not None:
            self._keep_prefix(request)
            self._finish(request, now)

    def _keep_prefix(self, request: Request) -> None:
        change = self._prefixes.observe(request.spec.prompt)
        if change is None:
            return
        for prefix_id in change.evicted_ids:
            self._runner.drop_prefix(prefix_id)
        self._runner.keep_prefix(change.prefix_id, _slot(request), change.num_tokens)

    def _decode(self, requests: Sequence[Request], num_slots: int) -> Sequence[float]:
        """Run one step; return the time to first token of each request that gets one."""
        token_ids = np.zeros(num_slots, dtype=np.int64)
        positions = np.full(num_slots, self._runner.max_model_len, dtype=np.int64)
        slots = [_slot(request) for request in requests]
        # In a latent step, the runner reads an embedding in place of the token.
        token_ids[slots] = [
            request.token_ids[-1] if request.token_ids else 0 for request in requests
        ]
        positions[slots] = [request.num_cached for request in requests]
        embeddings = self._latents.take(requests, slots, num_slots)
        output = self._runner.decode(token_ids, positions, embeddings)
        computed = self._reader.read(requests, slots, output)
        now = self._clock()
        is_first = [not (request.is_latent or request.token_ids) for request in requests]
        self._deliver(requests, computed, now)
        return [now - r.submitted_at for r, first in zip(requests, is_first, strict=True) if first]

    def _deliver(self, requests: Sequence[Request], computed: Computed, now: float) -> None:
        """Give each request its row and its step; end those that are done or have failed."""
        for index, row in zip(computed.keeping, computed.rows, strict=True):
            requests[index].rows.append(row)
        for index, request in enumerate(requests):
            error = computed.error_of(index)
            if error is not None:
                if isinstance(error, LatentInvalidError):
                    self._runner.clear_slot(_slot(request))
                self._fail(request, error)
                continue
            try:
                if index in computed.stepping:
                    reason = request.append_latent()
                else:
                    reason = request.append_token(computed.token_ids[index], self._eos_token_ids)
            except DetokenizationError as failure:
                self._fail(request, failure)
                continue
            if reason is not None:
                self._finish(request, now)

    def _finish(self, request: Request, now: float) -> None:
        self._scheduler.remove(request)
        self._changes.forget(request)
        self._latents.forget(request)
        try:
            completion = request.completion(now)
        except (LatentInvalidError, DetokenizationError) as error:
            request.resolve(error)
        else:
            request.resolve(completion)

    def _fail(self, request: Request, error: EngineError) -> None:
        self._scheduler.remove(request)
        self._changes.forget(request)
        self._latents.forget(request)
        request.resolve(error)


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot
