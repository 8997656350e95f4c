"""How one request samples its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latentwire_service.engine.errors import InvalidParamsError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, with Hugging Face's meanings.

    Attributes:
        max_new_tokens: maximum number of tokens to generate; 0 needs latent steps.
        seed: in [0, 2**63); the seed and the step index determine all noise of the request.
        do_sample: False means greedy decoding.
        temperature: logits are divided by it; 0 means greedy decoding.
        top_p: nucleus mass in (0, 1]; 1 keeps every token.
        top_k: number of most likely tokens kept; 0 keeps every token.
        stop: generation ends once one of these strings is in the text.
        stop_token_ids: generation ends with one of these tokens; its text is not part of the plan.
        min_p: tokens less likely than min_p times the most likely one are dropped; None: the
            model's default.
        repetition_penalty: logits of tokens in prompt and plan are divided by it if positive, else
            multiplied; None: the model's default.
        presence_penalty: subtracted from the logits of tokens in the plan.
        frequency_penalty: subtracted once for each occurrence of the token in the plan.
        logit_bias: pairs of token id and the number added to its logit before every other change.

    Raises:
        InvalidParamsError: a value is out of its range.
    """

    max_new_tokens: int
    seed: int
    do_sample: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_new_tokens < 0:
            raise InvalidParamsError("max_new_tokens", "must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise InvalidParamsError("seed", "must be in [0, 2**63)")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidParamsError("temperature", "must be a finite number >= 0")
        if not 0 < self.top_p <= 1:
            raise InvalidParamsError("top_p", "must be in (0, 1]")
        if self.top_k < 0:
            raise InvalidParamsError("top_k", "must be >= 0")
        if any(not text for text in self.stop):
            raise InvalidParamsError("stop", "must not hold an empty string")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InvalidParamsError("min_p", "must be in [0, 1]")
        penalty = self.repetition_penalty
        if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
            raise InvalidParamsError("repetition_penalty", "must be a finite number > 0")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidParamsError(name, "must be a finite number")
        if not all(math.isfinite(bias) for _, bias in self.logit_bias):
            raise InvalidParamsError("logit_bias", "must hold finite numbers")

    @property
    def is_greedy(self) -> bool:
        """Whether every step takes the most likely token."""
        return not self.do_sample or self.temperature == 0
