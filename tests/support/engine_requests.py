"""Requests for tests that need no text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.request import HiddenRows, Request
from latentwire_service.engine.sampling_params import SamplingParams
from support.fake_runner import HIDDEN_SIZE

_ids = itertools.count()


class NumberTokenizer:
    """Token n reads "n "."""

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)


def make_request(prompt: Sequence[int], max_new_tokens: int = 4, **params: Any) -> Request:
    sampling = SamplingParams(
        max_new_tokens=max_new_tokens, **({"do_sample": False, "seed": 0} | params)
    )
    return Request(
        request_id=f"r{next(_ids)}",
        prompt_token_ids=list(prompt),
        params=sampling,
        rows=HiddenRows(max_new_tokens, HIDDEN_SIZE),
        detokenizer=Detokenizer(NumberTokenizer(), sampling.stop),
        submitted_at=0.0,
    )
