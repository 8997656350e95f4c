"""One synchronous step: schedule, run, sample, deliver each request's token and hidden row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.backend import GenerationSpec, OnStep, StepStats
from latentwire_service.engine.detokenizer import Tokenizer, special_tokens
from latentwire_service.engine.errors import (
    DetokenizationError,
    EngineError,
    LatentInvalidError,
    NoTokenError,
    RequestCancelledError,
)
from latentwire_service.engine.logits import LogitsChanges, RowLogitsFactory
from latentwire_service.engine.prefix_cache import PrefixCache
from latentwire_service.engine.request import Request
from latentwire_service.engine.row_copy import PendingRows, RowCopier
from latentwire_service.engine.runner import ModelRunner, PromptPart, StepOutput
from latentwire_service.engine.sampler import SamplingBatch, sample
from latentwire_service.engine.scheduler import PrefillChunk, Scheduler


@dataclass(frozen=True, slots=True)
class _Computed:
    """What a pass gives its requests, on the host.

    Attributes:
        token_ids: `[B]`, the next token of each request.
        is_finite: `[B]`, whether every value of its hidden row is finite.
        is_choice: `[B]`, whether the token's logit is a number above -inf.
        errors: the failure of each request whose logits could not be changed.
        changed: indices of the requests whose logits were changed.
        keeping: indices of the requests that keep this step's row.
        rows: `[len(keeping), hidden_size]` float32; the next step may overwrite it.
    """

    token_ids: Sequence[int]
    is_finite: Sequence[int]
    is_choice: Sequence[int]
    errors: Mapping[int, EngineError]
    changed: frozenset[int]
    keeping: Sequence[int]
    rows: Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]

    def error_of(self, index: int) -> EngineError | None:
        """Return why a request has no valid token; None when it has one."""
        if not self.is_finite[index]:
            return LatentInvalidError("the model's hidden state is not finite")
        if index in self.errors:
            return self.errors[index]
        if self.is_choice[index]:
            return None
        if index in self.changed:
            return NoTokenError(
                "no token can be chosen: the request and the model's generation defaults exclude "
                "them all"
            )
        return LatentInvalidError("the model's logits are not numbers")


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
        self._copier = RowCopier(runner.device, runner.max_slots, runner.hidden_size)
        self._prefixes = PrefixCache()
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
        first_token_s: Sequence[float] = ()
        if schedule.prefill:
            first_token_s = self._prefill(schedule.prefill)
        if schedule.decode:
            self._decode(schedule.decode, schedule.num_slots)
        return StepStats(
            num_prompt_tokens=sum(chunk.end - chunk.start for chunk in schedule.prefill),
            num_new_tokens=len(schedule.decode) + sum(chunk.is_last for chunk in schedule.prefill),
            first_token_s=first_token_s,
        )

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> Sequence[float]:
        """Compute prompt chunks; return the time to first token, in seconds, of each that ends."""
        parts = [
            PromptPart(_slot(c.request), c.request.spec.prompt.slice(c.start, c.end), c.start)
            for c in chunks
        ]
        output = self._runner.prefill(parts)
        for chunk in chunks:
            chunk.request.advance_prefill(chunk.end)
        complete = [row for row, chunk in enumerate(chunks) if chunk.is_last]
        if not complete:
            return ()
        requests = [chunks[row].request for row in complete]
        computed = self._compute(requests, complete, output)
        now = self._clock()
        first_token_s = [request.start_decode(now) for request in requests]
        for request, is_finite in zip(requests, computed.is_finite, strict=True):
            # A prompt that the model cannot compute teaches no prefix.
            if is_finite:
                self._keep_prefix(request)
        self._deliver(requests, computed, now)
        return first_token_s

    def _keep_prefix(self, request: Request) -> None:
        change = self._prefixes.observe(request.spec.prompt)
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
        computed = self._compute(requests, slots, self._runner.decode(token_ids, positions))
        self._deliver(requests, computed, self._clock())

    @torch.inference_mode()
    def _compute(
        self, requests: Sequence[Request], rows: Sequence[int], output: StepOutput
    ) -> _Computed:
        """Sample the next token of each request from its row, and copy the hidden rows it keeps."""
        logits, hidden = output.logits, output.hidden
        if len(rows) != len(logits):
            index = torch.tensor(rows, device=logits.device)
            logits, hidden = logits[index], hidden[index]
        changed = self._changes.apply(requests, logits)
        batch = SamplingBatch.build(
            changed.sampling, [len(request.token_ids) for request in requests], logits.device
        )
        # Begun before sampling and awaited after it: on a GPU the two run side by side.
        keeping = [row for row, request in enumerate(requests) if not request.rows.is_full]
        pending = self._start_copy(keeping, hidden)
        sampled = sample(changed.logits, batch)
        chosen = changed.logits.gather(1, sampled[:, None])[:, 0]
        # False for NaN, too.
        is_choice = chosen > float("-inf")
        token_ids, is_finite, is_choice = torch.stack(
            [sampled, torch.isfinite(hidden).all(dim=-1).long(), is_choice.long()]
        ).tolist()
        return _Computed(
            token_ids,
            is_finite,
            is_choice,
            changed.errors,
            changed.rows,
            keeping,
            () if pending is None else pending.wait(),
        )

    def _start_copy(self, keeping: Sequence[int], hidden: torch.Tensor) -> PendingRows | None:
        """Move hidden rows off the device: one copy for all, none for requests that have theirs."""
        if not keeping:
            return None
        if len(keeping) != len(hidden):
            hidden = hidden[torch.tensor(keeping, device=hidden.device)]
        return self._copier.start(hidden)

    def _deliver(self, requests: Sequence[Request], computed: _Computed, now: float) -> None:
        """Give each request its row and its token; end those that are done or have failed."""
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
                reason = request.append_token(computed.token_ids[index], self._eos_token_ids)
            except DetokenizationError as failure:
                self._fail(request, failure)
                continue
            if reason is not None:
                self._finish(request, now)

    def _finish(self, request: Request, now: float) -> None:
        self._scheduler.remove(request)
        self._changes.forget(request)
        try:
            completion = request.completion(now)
        except (LatentInvalidError, DetokenizationError) as error:
            request.resolve(error)
        else:
            request.resolve(completion)

    def _fail(self, request: Request, error: EngineError) -> None:
        self._scheduler.remove(request)
        self._changes.forget(request)
        request.resolve(error)


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot
