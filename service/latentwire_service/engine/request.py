"""One request's state, from its submission to its completion."""

from __future__ import annotations

import enum
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.errors import LatentInvalidError
from latentwire_service.engine.sampling_params import SamplingParams


class RequestStatus(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why generation ended. A stop on the last allowed token is a stop."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """What a finished request hands to its caller.

    Attributes:
        text: the plan, special tokens left out, cut before a stop string.
        token_ids: the L generated tokens, end-of-sequence included.
        hidden_state: `[min(k, L), hidden_size]` float32, C-contiguous, CPU.
        queue_s, prefill_s, decode_s: seconds waiting for a slot, then to the first token, then to
            the last one.
    """

    text: str
    token_ids: list[int]
    hidden_state: npt.NDArray[np.float32]
    finish_reason: FinishReason
    prompt_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One generated token, as a streaming caller gets it.

    Attributes:
        index: position among the generated tokens, from 0.
        text: what the plan grew by; empty while a character is unfinished, or while the text's end
            may be the beginning of a stop string.
        row: `[hidden_size]` float32, a view of the request's own rows; None past its first k.
    """

    index: int
    token_id: int
    text: str
    row: npt.NDArray[np.float32] | None


class HiddenRows:
    """The hidden rows of one request: float32 on the CPU, never more than it asked for."""

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
            # Noted, not raised: one request's answer is wrong, the others in the step are not.
            self._has_other_width = True
            return
        self._rows[self._num_rows] = row
        self._num_rows += 1

    def row(self, index: int) -> npt.NDArray[np.float32] | None:
        """Return a stored row, which nothing writes to again; None when there is none."""
        row: npt.NDArray[np.float32] | None = self._rows[index] if index < self._num_rows else None
        return row

    def checked(self, num_tokens: int) -> npt.NDArray[np.float32]:
        """Return the rows once the latent's invariant holds for `num_tokens` generated tokens.

        Raises:
            LatentInvalidError: rows are missing, or a value is not finite.
        """
        if self._has_other_width:
            raise LatentInvalidError(f"a hidden row is not {self._rows.shape[1]} wide")
        rows = self._rows[: self._num_rows]
        expected = min(len(self._rows), num_tokens)
        if len(rows) != expected:
            raise LatentInvalidError(f"{len(rows)} hidden rows where {expected} were due")
        if not np.isfinite(rows).all():
            raise LatentInvalidError("a hidden row holds a value that is not finite")
        return rows


@dataclass(slots=True, eq=False)
class Request:
    """A request as the engine's thread sees it; no other thread may touch it after submission.

    Attributes:
        prompt_token_ids: at least one token.
        caller: who shares the queue's turns with others; "" where callers are not told apart.
        future: resolved with the `Completion`, or with an `EngineError`.
        on_step: called on the engine's thread with each token, before the future is resolved; must
            not block. None: nobody streams.
        submitted_at, admitted_at, first_token_at: seconds on the engine's clock.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    rows: HiddenRows
    detokenizer: Detokenizer
    submitted_at: float
    caller: str = ""
    future: Future[Completion] = field(default_factory=Future)
    on_step: Callable[[Step], None] | None = None
    status: RequestStatus = RequestStatus.WAITING
    slot: int | None = None
    num_prefilled: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    admitted_at: float = 0.0
    first_token_at: float = 0.0

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the request needs no further step."""
        return self.status is RequestStatus.FINISHED

    @property
    def num_cached(self) -> int:
        """Positions of the slot that hold keys and values."""
        return self.num_prefilled + max(0, len(self.token_ids) - 1)

    def append_token(self, token_id: int, eos_token_ids: frozenset[int]) -> None:
        """Take the next generated token, decide whether it was the last one, and pass it on.

        Raises:
            DetokenizationError: the tokenizer cannot make text of the tokens.
        """
        self.token_ids.append(token_id)
        stopped = token_id in eos_token_ids or self.detokenizer.append(token_id)
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) == self.params.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH
        if self.on_step is not None:
            is_last = self.finish_reason is not None
            text = self.detokenizer.take_text(self.token_ids if is_last else None)
            index = len(self.token_ids) - 1
            self.on_step(Step(index, token_id, text, self.rows.row(index)))

    def completion(self, finished_at: float) -> Completion:
        """Build the caller's answer.

        Raises:
            LatentInvalidError: the hidden rows break the latent's invariant.
            DetokenizationError: the tokenizer cannot make text of the tokens.
        """
        assert self.finish_reason is not None
        return Completion(
            text=self.detokenizer.final_text(self.token_ids),
            token_ids=self.token_ids,
            hidden_state=self.rows.checked(len(self.token_ids)),
            finish_reason=self.finish_reason,
            prompt_tokens=self.num_prompt_tokens,
            queue_s=self.admitted_at - self.submitted_at,
            prefill_s=self.first_token_at - self.admitted_at,
            decode_s=finished_at - self.first_token_at,
        )
