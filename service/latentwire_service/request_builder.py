"""What a caller asks for becomes a request of the engine, checked. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentwire.protocol import PlanLatentRequest
from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.errors import InvalidParamsError, PromptTooLongError
from latentwire_service.engine.prompt import encode_prompt, fill_template
from latentwire_service.engine.request import HiddenRows, Request, Step
from latentwire_service.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from latentwire_service.engine_factory import Served


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants, and who it is.

    Attributes:
        body: of the request.
        k: hidden rows to keep; None: all.
        caller: whose turn it uses up while requests wait for slots.
        timeout_s: seconds it may take; None: as long as it needs.
    """

    body: PlanLatentRequest
    k: int | None
    caller: str = ""
    timeout_s: float | None = None


def prompt_chars(body: PlanLatentRequest) -> int:
    """Return an upper bound of the prompt's length in characters, before it is made."""
    return len(body.prompt_template) + body.prompt_template.count("{task}") * len(body.task)


def build_request(
    served: Served,
    ask: Ask,
    max_new_tokens_limit: int | None,
    on_step: Callable[[Step], None] | None,
) -> Request:
    """Tokenize and check. A long prompt takes milliseconds; see `prompt_chars`.

    Args:
        served: the model.
        ask: what is wanted.
        max_new_tokens_limit: most tokens that may be asked for; None: what a slot holds.
        on_step: as `Request.on_step`.

    Raises:
        EngineError: the request cannot be run as asked.
    """
    body = ask.body
    if max_new_tokens_limit is not None and body.max_new_tokens > max_new_tokens_limit:
        raise InvalidParamsError(
            "max_new_tokens", f"must not exceed {max_new_tokens_limit} on this service"
        )
    tokenizer = served.loaded.tokenizer
    prompt = fill_template(body.prompt_template, body.task)
    token_ids = encode_prompt(tokenizer, prompt, body.chat_template)
    max_model_len = served.capacity.max_model_len
    if not token_ids:
        raise InvalidParamsError("prompt_template", "the prompt has no tokens")
    if len(token_ids) + body.max_new_tokens > max_model_len:
        raise PromptTooLongError(len(token_ids), body.max_new_tokens, max_model_len)
    params = _sampling_params(body, served.vocab_size)
    max_rows = body.max_new_tokens if ask.k is None else min(ask.k, body.max_new_tokens)
    return Request(
        request_id=f"plan-{secrets.token_hex(12)}",
        prompt_token_ids=token_ids,
        params=params,
        rows=HiddenRows(max_rows, served.hidden_size),
        detokenizer=Detokenizer(tokenizer, params.stop, is_streaming=on_step is not None),
        submitted_at=time.monotonic(),
        caller=ask.caller,
        on_step=on_step,
    )


def _sampling_params(body: PlanLatentRequest, vocab_size: int) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=body.max_new_tokens,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        do_sample=body.do_sample,
        temperature=body.temperature,
        top_p=body.top_p,
        # No vocabulary is larger than itself, and the sampler's integers are 64 bits wide.
        top_k=min(body.top_k, vocab_size),
        stop=tuple(body.stop),
    )
