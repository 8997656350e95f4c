"""A backend without a model: tokens and rows follow from the request alone.

It implements `Backend` from its plain values, and shares no code with our engine but the
detokenizer. One thread steps all running requests; it never checks its own rows.
"""

from __future__ import annotations

import hashlib
import string
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.backend import (
    LATENT_STEPS,
    LATENTS_IN,
    SCORING,
    BackendInfo,
    Completion,
    FinishReason,
    GenerationSpec,
    Occupancy,
    OnStep,
    Step,
    StepStats,
)
from latentwire_service.engine.detokenizer import Detokenizer, Tokenizer
from latentwire_service.engine.errors import (
    DetokenizationError,
    EngineError,
    EngineFailedError,
    EngineUnavailableError,
    QueueFullError,
    RequestCancelledError,
)
from latentwire_service.engine.prompt import Conversation, Prompt
from latentwire_service.settings import Settings
from support.fake_bridges import FakeBridges, fake_bridges
from support.tiny_shape import HIDDEN_SIZE, MAX_MODEL_LEN, VOCAB_SIZE

_CHATML = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"

Rows = npt.NDArray[np.float32]


class ByteTokenizer:
    """A token is a byte."""

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        del skip_special_tokens
        return bytes(token_ids).decode(errors="replace")


def letter(spec: GenerationSpec, index: int) -> int:
    """A letter that depends on the prompt, the seed if tokens are sampled, and the position."""
    seed = None if spec.sampling.is_greedy else spec.sampling.seed
    latents = [(span.start, span.rows.tobytes()) for span in spec.prompt.embeddings]
    key = (spec.prompt.token_ids, latents, seed, index)
    digest = hashlib.blake2b(repr(key).encode()).digest()
    return ord(string.ascii_letters[digest[0] % len(string.ascii_letters)])


def hidden_row(token_id: int, index: int) -> Rows:
    """`[HIDDEN_SIZE]` float32."""
    return np.sin(np.arange(HIDDEN_SIZE) + token_id * index).astype(np.float32)


def token_logprob(token_id: int) -> float:
    """The logarithm of the probability of a given token."""
    return -1.0 - token_id / 100


@dataclass(eq=False)
class _Request:
    spec: GenerationSpec
    on_step: OnStep | None
    detokenizer: Detokenizer
    condition: threading.Condition
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    first_token_at: float = 0.0
    future: Future[Completion] = field(default_factory=Future)
    token_ids: list[int] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    num_latent_steps: int = 0
    is_cancelled: bool = False

    @property
    def num_steps(self) -> int:
        return self.num_latent_steps + len(self.token_ids)

    @property
    def is_latent(self) -> bool:
        return self.num_latent_steps < self.spec.latent_steps

    def cancel(self) -> None:
        with self.condition:
            self.is_cancelled = True
            self.condition.notify()

    def fail(self, error: EngineError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class FakeBackend:
    """Runs `settings.max_slots` requests at a time, a latent step or a token per step each.

    Args:
        settings: limits, and the name of the model.
        on_step, on_failure: as a `BackendFactory` gets them.
        before_decode: called before each step that continues a request; may block or raise.
        change_rows: gets the rows `[n, HIDDEN_SIZE]` of each finished request.
        tokenizer: turns tokens into text.
    """

    def __init__(
        self,
        settings: Settings,
        on_step: Callable[[StepStats], None],
        on_failure: Callable[[Exception], None],
        before_decode: Callable[[], None] = lambda: None,
        change_rows: Callable[[Rows], Rows] = lambda rows: rows,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._settings = settings
        self._on_step = on_step
        self._on_failure = on_failure
        self._before_decode = before_decode
        self._change_rows = change_rows
        self._tokenizer = tokenizer or ByteTokenizer()
        self._max_slots = 4 if settings.max_slots == "auto" else settings.max_slots
        self._condition = threading.Condition()
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._is_open = True
        self._step_began_at: float | None = None
        self._abort_error: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    @property
    def info(self) -> BackendInfo:
        return BackendInfo(
            model_id=Path(self._settings.model).name,
            revision=self._settings.revision,
            hidden_size=HIDDEN_SIZE,
            vocab_size=VOCAB_SIZE,
            dtype="float32",
            device="cpu",
            max_slots=self._max_slots,
            max_model_len=MAX_MODEL_LEN,
            embedding_size=HIDDEN_SIZE,
            capabilities=frozenset({LATENTS_IN, LATENT_STEPS, SCORING}),
            bridges=tuple(self.bridges),
        )

    @property
    def bridges(self) -> FakeBridges:
        return fake_bridges(Path(self._settings.model).name)

    @property
    def occupancy(self) -> Occupancy:
        with self._condition:
            num_unfinished = len(self._running) + len(self._waiting)
        num_running = min(num_unfinished, self._max_slots)
        return Occupancy(num_running, num_unfinished - num_running)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def step_age_s(self) -> float:
        began_at = self._step_began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def load(self) -> None:
        self._thread.start()

    def encode_prompt(self, conversation: Conversation) -> Prompt:
        """A position is a byte, or a row of a latent."""
        pieces: list[str | Rows] = []
        for turn in conversation.turns:
            is_marked = conversation.chat_template == "qwen" or len(conversation.turns) > 1
            before, after = _CHATML.split("%s") if is_marked else ("", "")
            pieces += [before.replace("user", turn.role), *turn.content, after]
        return Prompt.joined(
            tuple(piece.encode()) if isinstance(piece, str) else piece for piece in pieces
        )

    def encode_plan(self, text: str) -> Prompt:
        return Prompt(tuple(text.encode()))

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> _Request:
        self.info.check(spec)
        is_given = spec.given_token_ids is not None
        detokenizer = Detokenizer(
            self._tokenizer,
            () if is_given else spec.sampling.stop,
            stop_token_ids=() if is_given else spec.sampling.stop_token_ids,
            is_streaming=on_step is not None,
        )
        request = _Request(spec, on_step, detokenizer, self._condition)
        with self._condition:
            if not self._is_open:
                raise EngineUnavailableError("the engine accepts no more requests")
            num_unfinished = len(self._running) + len(self._waiting)
            if num_unfinished >= self._max_slots + self._settings.max_queue:
                raise QueueFullError(self._settings.max_queue, retry_after_s=1.0)
            self._waiting.append(request)
            self._condition.notify()
        return request

    def drain(self, timeout_s: float | None) -> bool:
        with self._condition:
            self._is_open = False
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abort(self, error: EngineError) -> None:
        with self._condition:
            self._is_open = False
            self._abort_error = error
            self._condition.notify()

    def _run(self) -> None:
        try:
            while self._schedule():
                self._step_began_at = time.monotonic()
                self._step()
                self._step_began_at = None
        except Exception as error:
            self._fail_all(EngineFailedError("the engine failed"))
            self._on_failure(error)

    def _schedule(self) -> bool:
        """Drop the cancelled requests and fill the slots; False at the end."""
        with self._condition:
            while not (self._running or self._waiting):
                if not self._is_open:
                    return False
                self._condition.wait()
            for request in [r for r in self._running + self._waiting if r.is_cancelled]:
                request.fail(RequestCancelledError("the request was cancelled"))
                (self._running if request in self._running else self._waiting).remove(request)
            while self._waiting and len(self._running) < self._max_slots:
                self._running.append(self._waiting.pop(0))
                self._running[-1].started_at = time.monotonic()
        if self._abort_error is not None:
            self._fail_all(self._abort_error)
        return True

    def _fail_all(self, error: EngineError) -> None:
        with self._condition:
            self._is_open = False
            failed = self._running + self._waiting
            self._running, self._waiting = [], []
        for request in failed:
            request.fail(error)

    def _step(self) -> None:
        if any(request.num_steps for request in self._running):
            self._before_decode()
        started = [request for request in self._running if not request.num_steps]
        num_latent_steps = sum(request.is_latent for request in self._running)
        now = time.monotonic()
        for request in started:
            request.first_token_at = now
        self._on_step(
            StepStats(
                num_prompt_tokens=sum(len(request.spec.prompt) for request in started),
                num_new_tokens=len(self._running) - num_latent_steps,
                num_latent_steps=num_latent_steps,
                first_token_s=[now - request.submitted_at for request in started],
            )
        )
        for request in list(self._running):
            reason = self._advance(request)
            if reason is not None:
                with self._condition:
                    self._running.remove(request)
                self._finish(request, reason)

    def _advance(self, request: _Request) -> FinishReason | None:
        """Give a request its next latent step or token."""
        index = request.num_steps
        token_id = None if request.is_latent else self._next_token(request)
        row = hidden_row(token_id or 0, index) if index < request.spec.max_rows else None
        if row is not None:
            request.rows.append(row)
        reason = None
        if token_id is None:
            request.num_latent_steps += 1
            if request.num_steps == request.spec.num_outputs:
                reason = FinishReason.LATENT
        else:
            reason = self._append_token(request, token_id)
        if request.on_step is not None:
            text = ""
            if token_id is not None:
                text = request.detokenizer.take_text(request.token_ids if reason else None)
            request.on_step(Step(index, token_id, text, row))
        return reason

    def _next_token(self, request: _Request) -> int:
        given = request.spec.given_token_ids
        index = len(request.token_ids)
        return letter(request.spec, index) if given is None else given[index]

    def _append_token(self, request: _Request, token_id: int) -> FinishReason | None:
        request.token_ids.append(token_id)
        if request.spec.given_token_ids is not None:
            request.detokenizer.append(token_id)
            return FinishReason.GIVEN if request.num_steps == request.spec.num_outputs else None
        if request.detokenizer.append(token_id):
            return FinishReason.STOP
        is_last = len(request.token_ids) == request.spec.sampling.max_new_tokens
        return FinishReason.LENGTH if is_last else None

    def _finish(self, request: _Request, reason: FinishReason) -> None:
        try:
            text = request.detokenizer.final_text(request.token_ids)
        except DetokenizationError as error:
            request.fail(error)
            return
        rows = np.array(request.rows, np.float32).reshape(-1, HIDDEN_SIZE)
        token_logprobs = None
        if request.spec.given_token_ids is not None:
            token_logprobs = [token_logprob(token_id) for token_id in request.token_ids]
        completion = Completion(
            text=text,
            token_ids=request.token_ids,
            hidden_state=self._change_rows(rows),
            finish_reason=reason,
            prompt_tokens=len(request.spec.prompt),
            queue_s=request.started_at - request.submitted_at,
            prefill_s=request.first_token_at - request.started_at,
            decode_s=time.monotonic() - request.first_token_at,
            num_latent_steps=request.num_latent_steps,
            token_logprobs=token_logprobs,
        )
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(completion)
