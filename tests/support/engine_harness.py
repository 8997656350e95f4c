"""An engine over a real model, driven step by step in the test's own thread."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.hf.build import build_runner, probe
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.request import HiddenRows, Request
from latentwire_service.engine.sampling_params import SamplingParams
from support.tiny_models import EOS, build_tokenizer

_ids = itertools.count()


class EngineHarness:
    def __init__(
        self,
        model: Any,
        max_slots: int = 4,
        max_model_len: int = 256,
        prefill_chunk: int = 64,
        eos: Iterable[int] = (EOS,),
        tokenizer: Any = None,
    ) -> None:
        # The engine's own copy: the original stays what `generate` runs on.
        model = copy.deepcopy(model)
        probed = probe(model)
        self.runner: HfModelRunner = build_runner(model, probed, max_slots, max_model_len)
        self.tokenizer = tokenizer or build_tokenizer()
        self._ticks = itertools.count()
        self.engine = Engine(
            self.runner, frozenset(eos), prefill_chunk, clock=lambda: float(next(self._ticks))
        )

    def submit(
        self, prompt: list[int], max_new_tokens: int, k: int | None = None, **params: Any
    ) -> Request:
        defaults: dict[str, Any] = {"do_sample": False, "seed": 0}
        sampling = SamplingParams(max_new_tokens=max_new_tokens, **(defaults | params))
        max_rows = max_new_tokens if k is None else min(k, max_new_tokens)
        request = Request(
            request_id=f"r{next(_ids)}",
            prompt_token_ids=prompt,
            params=sampling,
            rows=HiddenRows(max_rows, self.runner.hidden_size),
            detokenizer=Detokenizer(self.tokenizer, sampling.stop),
            submitted_at=float(next(self._ticks)),
        )
        self.engine.add(request)
        return request

    def run(self) -> None:
        while self.engine.step() is not None:
            pass
