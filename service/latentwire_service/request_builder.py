"""From a caller's submission to a checked `GenerationSpec`. Knows no HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from latentwire.protocol import PlanLatentRequest
from latentwire_service.engine.backend import Backend, GenerationSpec
from latentwire_service.engine.errors import InvalidParamsError, PromptTooLongError
from latentwire_service.engine.prompt import fill_template
from latentwire_service.engine.sampling_params import SamplingParams

# JSON readers that hold numbers as doubles, JavaScript's among them, read these seeds exactly.
DRAWN_SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as it was received, and the caller who sent it.

    Attributes:
        body: the request's body.
        k: number of hidden rows to keep; None keeps all.
        caller: requests of one caller share its turns in the queue.
        timeout_s: seconds until the request is cancelled; None sets no limit.
    """

    body: PlanLatentRequest
    k: int | None
    caller: str = ""
    timeout_s: float | None = None


def prompt_chars(body: PlanLatentRequest) -> int:
    """Return an upper bound of the filled template's length in characters, without filling it."""
    return len(body.prompt_template) + body.prompt_template.count("{task}") * len(body.task)


def build_spec(
    backend: Backend, submission: Submission, max_new_tokens_limit: int | None
) -> GenerationSpec:
    """Tokenize and check. A long prompt takes milliseconds; see `prompt_chars`.

    Args:
        backend: the engine that will run the request.
        submission: the request.
        max_new_tokens_limit: largest `max_new_tokens` allowed; None allows what fits a slot.

    Raises:
        InvalidParamsError: a field is out of its range, or the prompt is empty.
        PromptTooLongError: prompt and new tokens do not fit a slot.
    """
    body, info = submission.body, backend.info
    if max_new_tokens_limit is not None and body.max_new_tokens > max_new_tokens_limit:
        raise InvalidParamsError(
            "max_new_tokens", f"must not exceed {max_new_tokens_limit} on this service"
        )
    text = fill_template(body.prompt_template, body.task)
    prompt = backend.encode_prompt(
        text, body.chat_template, None if body.date is None else date.fromisoformat(body.date)
    )
    if not len(prompt):
        raise InvalidParamsError("prompt_template", "the prompt has no tokens")
    if len(prompt) + body.max_new_tokens > info.max_model_len:
        raise PromptTooLongError(len(prompt), body.max_new_tokens, info.max_model_len)
    return GenerationSpec(
        plan_id=f"plan-{secrets.token_hex(12)}",
        prompt=prompt,
        sampling=_sampling_params(body, info.vocab_size),
        k=submission.k,
        caller=submission.caller,
    )


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
