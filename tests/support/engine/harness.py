"""An engine over a real model, driven step by step in the test's own thread."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from latentwire_service.engine.engine import Engine
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.generation import GenerationDefaults
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from support.engine.requests import make_spec
from support.tiny_models import EOS, build_tokenizer


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
        eos = frozenset(eos)
        ticks = itertools.count()
        self.engine = Engine(
            self.runner,
            tokenizer or build_tokenizer(),
            eos,
            prefill_chunk,
            clock=lambda: float(next(ticks)),
            make_row_logits=GenerationDefaults(model, eos).row_logits,
        )

    def submit(
        self,
        prompt: Sequence[int] | Prompt,
        max_new_tokens: int,
        k: int | None = None,
        **params: Any,
    ) -> Request:
        request = self.engine.new_request(make_spec(prompt, max_new_tokens, k=k, **params))
        self.engine.add(request)
        return request

    def run(self) -> None:
        while self.engine.step() is not None:
            pass
