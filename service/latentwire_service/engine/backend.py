"""The engine's upper seam: what the service needs of an engine, as plain values and a protocol.

An engine plugs in here: `LocalBackend` runs ours in this process, and the tests have one without a
model. Nothing here knows tensors, HTTP or how a model is loaded.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.errors import (
    EngineError,
    InvalidParamsError,
    LatentInvalidError,
    PromptTooLongError,
)
from latentwire_service.engine.prompt import Conversation, Prompt
from latentwire_service.engine.seams.bridge import Bridge, Bridges
from latentwire_service.engine.seams.generation_spec import GenerationSpec as GenerationSpec
from latentwire_service.engine.seams.generation_spec import StepBridge as StepBridge

ComputeDtype = Literal["bfloat16", "float16", "float32"]

# What an engine may be able to do, as `BackendInfo.capabilities` names it: embeddings in a prompt,
# steps whose input is an embedding, and the likelihood of given tokens.
LATENTS_IN, LATENT_STEPS, SCORING = "latents-in", "latent-steps", "scoring"


class FinishReason(enum.Enum):
    """Why generation ended. When the last allowed token is also a stop, the reason is STOP.

    LATENT: the request has latent steps alone. GIVEN: the plan was given and is scored.
    """

    STOP = "stop"
    LENGTH = "length"
    LATENT = "latent"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a finished request.

    Attributes:
        text: the plan, without special tokens, cut before a stop string.
        token_ids: the L generated tokens, end-of-sequence included.
        hidden_state: `[min(k, n + L), hidden_size]` float32, C-contiguous, CPU: the rows of the n
            latent steps, then one for each token. Row i < n is the one that became the input of
            latent step i; row n + t predicts token t.
        queue_s: seconds from the submission to a slot.
        prefill_s: seconds from there to the first row.
        decode_s: seconds from there to the last token.
        num_latent_steps: n.
        token_logprobs: for a given plan, the logarithm of the probability that the model gives each
            token: at temperature 1, without filters, penalties and biases. None for a plan
            that was generated.
    """

    text: str
    token_ids: list[int]
    hidden_state: npt.NDArray[np.float32]
    finish_reason: FinishReason
    prompt_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    num_latent_steps: int = 0
    token_logprobs: list[float] | None = None

    @property
    def num_steps(self) -> int:
        """Latent steps and tokens: the number of rows when all are kept."""
        return self.num_latent_steps + len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One latent step or generated token, as a streaming caller gets it.

    Attributes:
        index: position among the latent steps and the tokens after them, from 0.
        token_id: the token; None for a latent step.
        text: the characters that the plan grew by; empty while a character is unfinished, or while
            the end of the text may be the beginning of a stop string.
        row: `[hidden_size]` float32, a view of the request's own rows; None after its first k.
    """

    index: int
    token_id: int | None
    text: str
    row: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class StepStats:
    """The work of one engine step, for metrics.

    Attributes:
        num_prompt_tokens: positions of prompts and of given plans computed.
        num_new_tokens: tokens generated.
        num_latent_steps: latent steps made.
        first_token_s: for each request that got its first token, the seconds since its submission.
    """

    num_prompt_tokens: int
    num_new_tokens: int
    first_token_s: Sequence[float]
    num_latent_steps: int = 0


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Facts about a loaded engine and its model.

    Attributes:
        model_id: hub id, or the last part of a path.
        revision: the hub's commit hash; None for local models.
        hidden_size: width H of a hidden row.
        vocab_size: number of token ids.
        dtype: compute dtype.
        device: kind of device: `cpu`, `cuda` or `mps`.
        max_slots: requests that run together.
        max_model_len: prompt and generated tokens of one request.
        generation_defaults: the model's own settings for the choice of tokens that are applied to
            every request, as JSON values.
        embedding_size: width of an input embedding; None when the engine takes none.
        capabilities: which of `LATENTS_IN`, `LATENT_STEPS` and `SCORING` it has.
        refusals: the reason, by the name of a capability that it lacks. Also, by the name of a
            request's field, which values it takes, where other engines take more.
        bridges: the bridges that `/info` lists.
        engine: name of the engine: `latentwire` or `vllm`.
        engine_version: its version; None when it has none of its own.
    """

    model_id: str
    revision: str | None
    hidden_size: int
    vocab_size: int
    dtype: ComputeDtype
    device: str
    max_slots: int
    max_model_len: int
    generation_defaults: Mapping[str, object] = field(default_factory=dict)
    embedding_size: int | None = None
    capabilities: frozenset[str] = frozenset()
    refusals: Mapping[str, str] = field(default_factory=dict)
    bridges: Sequence[Bridge] = ()
    engine: str = "latentwire"
    engine_version: str | None = None

    @property
    def engine_name(self) -> str:
        """The engine with its version, for declarations."""
        return " ".join(filter(None, (self.engine, self.engine_version)))

    def require(self, capability: str, request_field: str) -> None:
        """Do nothing when the engine has a capability.

        Args:
            capability: one of the known ones.
            request_field: the field of the request that needs it.

        Raises:
            InvalidParamsError: it has not.
        """
        if capability not in self.capabilities:
            reason = self.refusals.get(capability)
            raise InvalidParamsError(
                request_field,
                f"the engine of {self.model_id} has no capability {capability!r}"
                + (f": {reason}" if reason else ""),
            )

    def check(self, spec: GenerationSpec) -> None:
        """Check that the engine can run a request: a pass would fail for all requests in it.

        Raises:
            InvalidParamsError: the engine lacks a capability, or embeddings have another width.
            PromptTooLongError: the request needs more positions than a slot has.
        """
        if spec.num_positions > self.max_model_len:
            raise PromptTooLongError(
                len(spec.prompt),
                spec.num_outputs - spec.latent_steps,
                self.max_model_len,
                spec.latent_steps,
                has_plan=spec.given_token_ids is not None,
            )
        if spec.latent_steps:
            self.require(LATENT_STEPS, "latent_steps")
        if spec.given_token_ids is not None:
            self.require(SCORING, "plan")
            if not all(0 <= token_id < self.vocab_size for token_id in spec.given_token_ids):
                raise InvalidParamsError("plan", "holds a token that the model does not have")
        width = spec.prompt.embedding_size
        if width is not None:
            self.require(LATENTS_IN, "prompt")
            if width != self.embedding_size:
                raise InvalidParamsError(
                    "prompt",
                    f"an embedding has {width} values, but the model's have {self.embedding_size}",
                )


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How busy an engine is.

    Attributes:
        num_running: requests that hold a slot.
        num_waiting: requests that wait for one.
    """

    num_running: int
    num_waiting: int


class GenerationHandle(Protocol):
    """A submitted request."""

    @property
    def future(self) -> Future[Completion]:
        """Resolved on the engine's thread with the completion or with an `EngineError`."""
        ...

    def cancel(self) -> None:
        """Give the request up: its slot is free from the next step on. Harmless once finished."""
        ...


OnStep = Callable[[Step], None]


class Backend(Protocol):
    """An engine with one model. All methods may be called from any thread."""

    @property
    def info(self) -> BackendInfo:
        """Facts about the model; only after `load`."""
        ...

    @property
    def bridges(self) -> Bridges:
        """What makes input embeddings of hidden rows; only after `load`."""
        ...

    @property
    def occupancy(self) -> Occupancy:
        """How busy the engine is; only after `load`."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether native code of this engine may be running in this process."""
        ...

    @property
    def step_age_s(self) -> float:
        """Seconds since the current step began; 0 while none runs. A step that hangs gets old."""
        ...

    def load(self) -> None:
        """Load the model and start the engine. Blocks for seconds to minutes.

        Raises:
            ModelError: the model cannot be served with the given settings.
        """
        ...

    def encode_prompt(self, conversation: Conversation) -> Prompt:
        """Make the prompt of a conversation: template and tokenizer of the model.

        Raises:
            InvalidParamsError: the model cannot read the text.
        """
        ...

    def encode_plan(self, text: str) -> Prompt:
        """Tokenize a plan to be scored: its text alone, without special tokens before or behind.

        Raises:
            InvalidParamsError: the model cannot read the text.
        """
        ...

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> GenerationHandle:
        """Queue a request.

        Args:
            spec: the request.
            on_step: called on the engine's thread with each step before the future is resolved;
                must not block. None: the caller does not stream.

        Raises:
            InvalidParamsError, PromptTooLongError: as `BackendInfo.check`.
            QueueFullError: the queue is full.
            EngineUnavailableError: the engine is stopping or lost.
        """
        ...

    def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests, finish the accepted ones, and end.

        Returns:
            whether the engine ended within the timeout; None waits without limit.
        """
        ...

    def abort(self, error: EngineError) -> None:
        """Refuse new requests and fail the accepted ones from the next step on."""
        ...


class BackendFactory(Protocol):
    """Makes a backend that reports to the given callables. Called on the loader's thread."""

    def __call__(
        self, on_step: Callable[[StepStats], None], on_failure: Callable[[Exception], None]
    ) -> Backend:
        """Return a backend that is not loaded yet.

        Args:
            on_step: called on the engine's thread after each step.
            on_failure: called on the engine's thread once the engine is lost.
        """
        ...


def check_latent(
    hidden_state: npt.NDArray[np.float32], *, num_rows: int, hidden_size: int
) -> npt.NDArray[np.float32]:
    """Return the rows if they are a valid latent: the invariant that every answer has to meet.

    Args:
        hidden_state: `[rows, width]` float32.
        num_rows: min(k, n + L) for n latent steps and L generated tokens.
        hidden_size: width H of the model.

    Raises:
        LatentInvalidError: the number of rows or their width is wrong, or a value is not finite.
    """
    if hidden_state.ndim != 2 or hidden_state.shape[1] != hidden_size:
        raise LatentInvalidError(f"a hidden row is not {hidden_size} wide")
    if len(hidden_state) != num_rows:
        raise LatentInvalidError(f"{len(hidden_state)} hidden rows instead of {num_rows}")
    if not np.isfinite(hidden_state).all():
        raise LatentInvalidError("a hidden row holds a value that is not finite")
    return hidden_state
