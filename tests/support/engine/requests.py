"""Specs and requests for tests that need no text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from latentwire_service.engine.backend import GenerationSpec, StepBridge
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from latentwire_service.engine.sampling_params import SamplingParams
from support.engine.fake_runner import HIDDEN_SIZE

_ids = itertools.count()


class NumberTokenizer:
    """Token n reads "n "."""

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)


def make_spec(
    prompt: Sequence[int] | Prompt,
    max_new_tokens: int = 4,
    *,
    k: int | None = None,
    caller: str = "",
    latent_steps: int = 0,
    step_bridge: StepBridge | None = None,
    given: Sequence[int] | None = None,
    **params: Any,
) -> GenerationSpec:
    """A greedy request by default; `params` override its sampling parameters."""
    defaults: dict[str, Any] = {"do_sample": False, "seed": 0}
    sampling = SamplingParams(max_new_tokens=max_new_tokens, **(defaults | params))
    if not isinstance(prompt, Prompt):
        prompt = Prompt(tuple(prompt))
    given = None if given is None else tuple(given)
    return GenerationSpec(
        f"plan-{next(_ids)}", prompt, sampling, k, caller, latent_steps, step_bridge, given
    )


def make_request(prompt: Sequence[int], max_new_tokens: int = 4, **options: Any) -> Request:
    """A request of a `make_spec` that no engine knows yet."""
    spec = make_spec(prompt, max_new_tokens, **options)
    return Request(spec, HIDDEN_SIZE, NumberTokenizer(), None, submitted_at=0.0)
