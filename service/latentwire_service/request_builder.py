"""From a caller's submission to a checked `GenerationSpec`. Knows no HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latentwire.protocol import PlanLatentRequest, fault_of
from latentwire_service.engine.backend import (
    LATENT_STEPS,
    SCORING,
    Backend,
    GenerationSpec,
    StepBridge,
)
from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.engine.prompt import Embeddings
from latentwire_service.engine.sampling_params import SamplingParams
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.prompt_input import read_conversation

# JSON readers that hold numbers as doubles, JavaScript's among them, read these seeds exactly.
DRAWN_SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as it was received, and the caller who sent it.

    Attributes:
        body: the request's body.
        k: number of hidden rows to keep; None keeps all. With a compressor, its number of rows.
        caller: requests of one caller share its turns in the queue.
        timeout_s: seconds until the request is cancelled; None sets no limit.
        tensors: float32 matrices that the body's latents name.
        plan_id: id of the answer; None draws one.
        is_length_open: `max_new_tokens` is not the caller's choice: less is generated where it
            exceeds a limit.
        compressor: name of the compressor of the latent; None: it is not compressed.
        has_hidden_state: whether the answer holds the full latent.
    """

    body: PlanLatentRequest
    k: int | None
    caller: str = ""
    timeout_s: float | None = None
    tensors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    plan_id: str | None = None
    is_length_open: bool = False
    compressor: str | None = None
    has_hidden_state: bool = True

    @property
    def max_rows(self) -> int | None:
        """Most hidden rows that the engine hands out; None: all of them."""
        if self.compressor is not None:
            return None
        return self.k if self.has_hidden_state else 0


def build_spec(
    backend: Backend, submission: Submission, max_new_tokens_limit: int | None
) -> GenerationSpec:
    """Tokenize and check. May take long; see `prompt_input.takes_long`.

    Args:
        backend: the engine that will run the request.
        submission: the request.
        max_new_tokens_limit: largest `max_new_tokens` allowed; None allows what fits a slot.

    Raises:
        InvalidParamsError: a field is out of its range, or the prompt is empty.
        PromptTooLongError: prompt and new tokens do not fit a slot.
    """
    body, info = submission.body, backend.info
    fault = fault_of(body)
    if fault is not None:
        raise InvalidParamsError(*fault)
    _check_limit(submission, max_new_tokens_limit)
    steps = _steps(backend, body)
    prompt = backend.encode_prompt(read_conversation(body, submission.tensors, backend))
    if not len(prompt):
        field = "prompt_template" if body.messages is None else "messages"
        raise InvalidParamsError(field, "the prompt has no tokens")
    if steps.start is not None:
        prompt = prompt.followed_by_rows(steps.start)
    if submission.is_length_open:
        body = _shortened(body, len(prompt), info.max_model_len, max_new_tokens_limit)
    given_token_ids = _given_token_ids(backend, body)
    spec = GenerationSpec(
        plan_id=submission.plan_id or f"plan-{secrets.token_hex(12)}",
        prompt=prompt,
        sampling=_sampling_params(body, info.vocab_size),
        k=submission.max_rows,
        caller=submission.caller,
        latent_steps=body.latent_steps,
        step_bridge=steps.bridge,
        given_token_ids=given_token_ids,
    )
    info.check(spec)
    return spec


def _check_limit(submission: Submission, limit: int | None) -> None:
    names = ("latent_steps",) if submission.is_length_open else ("max_new_tokens", "latent_steps")
    for name in names:
        if limit is not None and getattr(submission.body, name) > limit:
            raise InvalidParamsError(name, f"must not exceed {limit} on this service")


def _shortened(
    body: PlanLatentRequest, num_prompt: int, max_model_len: int, limit: int | None
) -> PlanLatentRequest:
    """Lower `max_new_tokens` to what fits, but not below one token."""
    fitting = max(1, max_model_len - num_prompt - body.latent_steps)
    largest = fitting if limit is None else min(fitting, limit)
    return body.model_copy(update={"max_new_tokens": min(body.max_new_tokens, largest)})


def _given_token_ids(backend: Backend, body: PlanLatentRequest) -> tuple[int, ...] | None:
    if body.plan is None:
        return None
    backend.info.require(SCORING, "plan")
    return backend.encode_plan(body.plan).token_ids


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """What feeds the latent steps, and the `[n, width]` embeddings that end the prompt for them."""

    bridge: StepBridge | None = None
    start: Embeddings | None = None


def _steps(backend: Backend, body: PlanLatentRequest) -> _Steps:
    if not body.latent_steps:
        return _Steps()
    backend.info.require(LATENT_STEPS, "latent_steps")
    bridges = backend.bridges
    name = body.step_bridge or bridges.default_step
    try:
        return _Steps(bridges.step(name), bridges.step_start(name))
    except BridgeError as error:
        raise InvalidParamsError("step_bridge", str(error)) from error


def _sampling_params(body: PlanLatentRequest, vocab_size: int) -> SamplingParams:
    stop_token_ids, logit_bias = body.stop_token_ids or [], body.logit_bias or {}
    _check_token_ids("stop_token_ids", stop_token_ids, vocab_size)
    _check_token_ids("logit_bias", logit_bias, vocab_size)
    return SamplingParams(
        max_new_tokens=body.max_new_tokens,
        seed=secrets.randbits(DRAWN_SEED_BITS) if body.seed is None else body.seed,
        do_sample=body.do_sample,
        temperature=body.temperature,
        top_p=body.top_p,
        # More than the vocabulary keeps every token, and the sampler's integers are 64 bits wide.
        top_k=min(body.top_k, vocab_size),
        stop=tuple(body.stop),
        stop_token_ids=tuple(stop_token_ids),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple(logit_bias.items()),
    )


def _check_token_ids(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise InvalidParamsError(
                field, f"token id {token_id} is not below the model's {vocab_size} token ids"
            )
