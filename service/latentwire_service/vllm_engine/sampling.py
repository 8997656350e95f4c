"""Sampling parameters of a request to vLLM's. What vLLM would do otherwise is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.errors import InvalidParamsError, UnsupportedModelError
from latentwire_service.engine.sampling_params import SamplingParams

# vLLM takes any lower temperature for this one, and any that is lower still for 0.
_MIN_TEMPERATURE = 0.01
_MAX_TEMPERATURE = 2.0
_MAX_PENALTY = 2.0
_PENALTIES = f"the vLLM engine takes {-_MAX_PENALTY:g} to {_MAX_PENALTY:g}"
# By the field of a request: the values that other engines take, and this one does not.
FIELD_REFUSALS: Mapping[str, str] = {
    "temperature": (
        f"the vLLM engine samples with {_MIN_TEMPERATURE:g} to {_MAX_TEMPERATURE:g}, or takes the "
        "most likely token with 0"
    ),
    "presence_penalty": _PENALTIES,
    "frequency_penalty": _PENALTIES,
}
# Settings of generation_config.json that vLLM can apply, by the name that vLLM gives them.
_MAPPED: Mapping[str, str] = {
    "repetition_penalty": "repetition_penalty",
    "min_p": "min_p",
    "min_new_tokens": "min_tokens",
}
_STOP_STRINGS = "stop_strings"


class VllmSampling:
    """Makes vLLM's parameters for the requests of one model.

    Args:
        defaults: the model's own settings for the choice of tokens, by their names.
        eos_token_ids: tokens that end generation.

    Raises:
        UnsupportedModelError: the model has a setting that vLLM does not apply.
    """

    def __init__(self, defaults: Mapping[str, Any], eos_token_ids: frozenset[int]) -> None:
        for name, value in defaults.items():
            if name not in _MAPPED and name != _STOP_STRINGS:
                raise UnsupportedModelError(
                    f"generation_config.json sets {name} to {value!r}, which the vLLM engine does "
                    "not apply; use --engine latentwire, or remove it from the file"
                )
        self._defaults = {
            _MAPPED[name]: value for name, value in defaults.items() if name in _MAPPED
        }
        self._eos_token_ids = eos_token_ids

    def params_of(self, spec: GenerationSpec) -> dict[str, Any]:
        """Return vLLM's parameters of a request.

        Stop strings are not among them: the service finds them in the text, as for every engine.

        Raises:
            InvalidParamsError: vLLM has no such parameter, or not this value.
        """
        sampling = spec.sampling
        _check(sampling)
        params: dict[str, Any] = {
            "temperature": 0.0 if sampling.is_greedy else sampling.temperature,
            "top_p": 1.0 if sampling.is_greedy else sampling.top_p,
            "top_k": 0 if sampling.is_greedy else sampling.top_k,
            "seed": sampling.seed,
            "max_tokens": sampling.max_new_tokens,
            # Exactly the tokens of this service end a plan, not those of vLLM's choice.
            "ignore_eos": True,
            "stop_token_ids": sorted({*self._eos_token_ids, *sampling.stop_token_ids}),
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            **self._defaults,
        }
        if sampling.min_p is not None:
            params["min_p"] = sampling.min_p
        if sampling.is_greedy:
            params.pop("min_p", None)
        if sampling.repetition_penalty is not None:
            params["repetition_penalty"] = sampling.repetition_penalty
        if "min_tokens" in params:
            params["min_tokens"] = min(params["min_tokens"], sampling.max_new_tokens)
        if sampling.logit_bias:
            params["logit_bias"] = dict(sampling.logit_bias)
        return params


def _check(sampling: SamplingParams) -> None:
    temperature = sampling.temperature
    if not sampling.is_greedy and not _MIN_TEMPERATURE <= temperature <= _MAX_TEMPERATURE:
        raise InvalidParamsError("temperature", FIELD_REFUSALS["temperature"])
    for name in ("presence_penalty", "frequency_penalty"):
        if abs(getattr(sampling, name)) > _MAX_PENALTY:
            raise InvalidParamsError(name, FIELD_REFUSALS[name])
