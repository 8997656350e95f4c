"""One request's state, from its submission to its completion.

The engine's thread owns it after submission. State changes only through the methods here, and each
checks that it is called in its turn.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.backend import (
    Completion,
    FinishReason,
    GenerationSpec,
    OnStep,
    Step,
    check_latent,
)
from latentwire_service.engine.detokenizer import Detokenizer, SpecialToken, Tokenizer
from latentwire_service.engine.errors import EngineError, LatentInvalidError
from latentwire_service.engine.prompt import PLACEHOLDER_ID


class RequestStatus(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class HiddenRows:
    """The hidden rows of one request: float32 on the CPU, at most as many as it keeps."""

    def __init__(self, max_rows: int, hidden_size: int) -> None:
        # np.empty touches no page: memory is taken by the rows that are written, not by the limit.
        self._rows = np.empty((max_rows, hidden_size), dtype=np.float32)
        self._num_rows = 0
        self._has_other_width = False

    @property
    def is_full(self) -> bool:
        """Whether the request has its k rows: later ones need not leave the device."""
        return self._num_rows == len(self._rows)

    def append(self, row: npt.NDArray[np.float32]) -> None:
        """Store the next row, `[hidden_size]` float32."""
        if row.shape != self._rows.shape[1:]:
            # Noted, not raised: the answers of the other requests in the step are right.
            self._has_other_width = True
            return
        self._rows[self._num_rows] = row
        self._num_rows += 1

    def row(self, index: int) -> npt.NDArray[np.float32] | None:
        """Return a stored row, which is never written to again; None when there is none."""
        row: npt.NDArray[np.float32] | None = self._rows[index] if index < self._num_rows else None
        return row

    def checked(self, num_steps: int) -> npt.NDArray[np.float32]:
        """Return the rows once the latent's invariant holds for `num_steps` steps.

        Raises:
            LatentInvalidError: rows are missing or of another width, or a value is not finite.
        """
        max_rows, hidden_size = self._rows.shape
        if self._has_other_width:
            raise LatentInvalidError(f"a hidden row is not {hidden_size} wide")
        return check_latent(
            self._rows[: self._num_rows],
            num_rows=min(max_rows, num_steps),
            hidden_size=hidden_size,
        )


class Request:
    """A request as the engine's thread sees it; `Engine.new_request` makes it.

    Args:
        spec: what was submitted.
        hidden_size: width H of a hidden row.
        tokenizer: turns tokens into text.
        on_step: called with each step before the future is resolved; None: nobody streams.
        submitted_at: seconds on the engine's clock.
        special: the tokenizer's special tokens.
    """

    # Attributes without an underscore are read by the scheduler and the engine, and written here.
    __slots__ = (
        "_admitted_at",
        "_detokenizer",
        "_finish_reason",
        "_first_row_at",
        "_max_new_tokens",
        "_num_latent_steps",
        "_num_prefilled",
        "_on_step",
        "_slot",
        "_status",
        "future",
        "prefill_prompt",
        "rows",
        "spec",
        "submitted_at",
        "token_ids",
        "token_logprobs",
    )

    def __init__(
        self,
        spec: GenerationSpec,
        hidden_size: int,
        tokenizer: Tokenizer,
        on_step: OnStep | None,
        submitted_at: float,
        special: Mapping[int, SpecialToken] | None = None,
    ) -> None:
        self.spec = spec
        self.submitted_at = submitted_at
        self.future: Future[Completion] = Future()
        self.rows = HiddenRows(spec.max_rows, hidden_size)
        self.token_ids: list[int] = []
        self.token_logprobs: list[float] = []
        # The text of a given plan ends nowhere but at its end.
        is_given = spec.given_token_ids is not None
        # What passes over many positions compute: the prompt, and a given plan but its last token.
        self.prefill_prompt = spec.prompt
        if spec.given_token_ids is not None:
            self.prefill_prompt = spec.prompt.followed_by(spec.given_token_ids[:-1])
        self._detokenizer = Detokenizer(
            tokenizer,
            () if is_given else spec.sampling.stop,
            stop_token_ids=() if is_given else spec.sampling.stop_token_ids,
            special=special,
            is_streaming=on_step is not None,
        )
        self._max_new_tokens = spec.sampling.max_new_tokens
        self._on_step = on_step
        self._status = RequestStatus.WAITING
        self._slot: int | None = None
        self._num_prefilled = 0
        self._num_latent_steps = 0
        self._finish_reason: FinishReason | None = None
        self._admitted_at = 0.0
        self._first_row_at = 0.0

    @property
    def status(self) -> RequestStatus:
        """Where the request is in its life."""
        return self._status

    @property
    def slot(self) -> int | None:
        """The slot that it holds; None while it waits and after its end."""
        return self._slot

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.spec.prompt)

    @property
    def num_to_prefill(self) -> int:
        """Positions that passes over many positions compute: those of `prefill_prompt`."""
        return len(self.prefill_prompt)

    @property
    def is_given(self) -> bool:
        """Whether the plan is given and is scored."""
        return self.spec.given_token_ids is not None

    @property
    def num_prefilled(self) -> int:
        """Positions of `prefill_prompt` whose keys and values are in the slot."""
        return self._num_prefilled

    @property
    def num_cached(self) -> int:
        """Positions of the slot that hold keys and values."""
        if self.is_given:
            return self._num_prefilled
        return self._num_prefilled + max(0, self.num_steps - 1)

    @property
    def num_steps(self) -> int:
        """Latent steps and tokens so far."""
        return self._num_latent_steps + len(self.token_ids)

    @property
    def last_token_id(self) -> int:
        """The input of the next step; a placeholder where that is an embedding."""
        return self.token_ids[-1] if self.token_ids else PLACEHOLDER_ID

    @property
    def is_latent(self) -> bool:
        """Whether the next row is that of a latent step, and not that of a token."""
        return self._num_latent_steps < self.spec.latent_steps

    @property
    def admitted_at(self) -> float:
        """When it got a slot: seconds on the engine's clock."""
        return self._admitted_at

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why generation ended; None before the last token and after a failure."""
        return self._finish_reason

    @property
    def is_finished(self) -> bool:
        """Whether the request needs no further step."""
        return self._status is RequestStatus.FINISHED

    def admit(self, slot: int, now: float) -> None:
        """Take a slot; the prompt is computed next."""
        assert self._status is RequestStatus.WAITING
        self._slot = slot
        self._admitted_at = now
        self._status = RequestStatus.PREFILL

    def advance_prefill(self, end: int) -> None:
        """Note that prompt positions up to `end` are in the slot, computed or copied."""
        assert self._status is RequestStatus.PREFILL
        assert self._num_prefilled < end <= self.num_to_prefill
        self._num_prefilled = end

    def start_decode(self, now: float) -> float:
        """Note that the prompt is complete and its step gives the first row.

        Returns:
            seconds since the submission: the time to first token, when there are no latent steps.
        """
        assert self._status is RequestStatus.PREFILL
        assert self._num_prefilled == self.num_prompt_tokens
        assert not self.is_given
        self._first_row_at = now
        self._status = RequestStatus.DECODE
        return now - self.submitted_at

    def move_to(self, slot: int) -> None:
        """Take another slot instead of the current one."""
        assert self._slot is not None
        self._slot = slot

    def append_latent(self) -> FinishReason | None:
        """Note a latent step, and pass it to the streaming caller.

        Returns:
            why generation ends with this step; None when it continues.
        """
        assert self._status is RequestStatus.DECODE
        assert self.is_latent
        index = self._num_latent_steps
        self._num_latent_steps += 1
        if not self.is_latent and not self._max_new_tokens:
            self._finish_reason = FinishReason.LATENT
        if self._on_step is not None:
            self._on_step(Step(index, None, "", self.rows.row(index)))
        return self._finish_reason

    def append_token(self, token_id: int, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Take the next generated token and pass it to the streaming caller.

        Returns:
            why generation ends with this token; None when it continues.

        Raises:
            DetokenizationError: the tokenizer cannot decode the tokens.
        """
        assert self._status is RequestStatus.DECODE
        assert not self.is_latent
        self.token_ids.append(token_id)
        if token_id in eos_token_ids or self._detokenizer.append(token_id):
            self._finish_reason = FinishReason.STOP
        elif len(self.token_ids) == self._max_new_tokens:
            self._finish_reason = FinishReason.LENGTH
        self._pass_on(token_id)
        return self._finish_reason

    def append_given(self, logprob: float, now: float) -> FinishReason | None:
        """Take the score of the next given token, and pass the token to the streaming caller.

        Args:
            logprob: the logarithm of its probability.
            now: seconds on the engine's clock.

        Returns:
            why the request ends with this token; None when it continues.

        Raises:
            DetokenizationError: the tokenizer cannot decode the tokens.
        """
        assert self._status is RequestStatus.PREFILL
        given = self.spec.given_token_ids
        assert given is not None
        if not self.token_ids:
            self._first_row_at = now
        token_id = given[len(self.token_ids)]
        self.token_ids.append(token_id)
        self.token_logprobs.append(logprob)
        self._detokenizer.append(token_id)
        if len(self.token_ids) == len(given):
            self._finish_reason = FinishReason.GIVEN
        self._pass_on(token_id)
        return self._finish_reason

    def _pass_on(self, token_id: int) -> None:
        """Pass the newest token to the streaming caller."""
        if self._on_step is not None:
            is_last = self._finish_reason is not None
            text = self._detokenizer.take_text(self.token_ids if is_last else None)
            index = self.num_steps - 1
            self._on_step(Step(index, token_id, text, self.rows.row(index)))

    def finish(self) -> None:
        """Give the slot back: no further step is computed for this request."""
        self._slot = None
        self._status = RequestStatus.FINISHED

    def completion(self, now: float) -> Completion:
        """Build the result of a request whose last step came at `now`.

        Raises:
            LatentInvalidError: the hidden rows break the latent's invariant.
            DetokenizationError: the tokenizer cannot decode the tokens.
        """
        assert self._finish_reason is not None
        return Completion(
            text=self._detokenizer.final_text(self.token_ids),
            token_ids=self.token_ids,
            hidden_state=self.rows.checked(self.num_steps),
            finish_reason=self._finish_reason,
            prompt_tokens=self.num_prompt_tokens,
            queue_s=self._admitted_at - self.submitted_at,
            prefill_s=self._first_row_at - self._admitted_at,
            decode_s=now - self._first_row_at,
            num_latent_steps=self._num_latent_steps,
            token_logprobs=self.token_logprobs if self.is_given else None,
        )

    def resolve(self, outcome: Completion | EngineError) -> None:
        """Hand the outcome to the caller, unless the caller has cancelled the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Completion):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)
