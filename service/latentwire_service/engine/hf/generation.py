"""What `generation_config.json` changes about the choice of tokens, applied as `generate` does.

The processors are those that transformers itself would build, in its order. Temperature, top-p,
top-k and the number of tokens are the request's. Whatever asks for another search is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import LogitsProcessorList

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf.penalties import CountPenalty, LogitBias
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.sampling_params import SamplingParams

# Fields that build a processor for greedy decoding and sampling alike, with their neutral values.
PROCESSOR_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "sequence_bias": (),
    "encoder_repetition_penalty": (1.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
}
# Fields that build a processor that follows top-k and top-p.
LATE_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "watermarking_config": (),
}
# The sampler applies it to all rows at once.
SAMPLER_FIELDS: Mapping[str, tuple[Any, ...]] = {"min_p": (0.0,)}
STOPPING_FIELDS: Mapping[str, tuple[Any, ...]] = {"stop_strings": ([],)}
# Fields that make `generate` search, compute or read differently; refused unless neutral.
REFUSED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "token_healing": (False,),
    "max_time": (),
}
# A cache in fewer bits gives other logits.
_REFUSED_CACHES = ("quantized",)

_APPLIED = {**PROCESSOR_FIELDS, **LATE_FIELDS, **SAMPLER_FIELDS, **STOPPING_FIELDS}


class GenerationDefaults:
    """A model's generation defaults, checked once.

    Args:
        model: a causal LM; its `generation_config` is not changed.
        eos_token_ids: tokens that end generation.

    Raises:
        UnsupportedModelError: the configuration names what this service does not do, or a value
            that transformers cannot use.
    """

    def __init__(self, model: Any, eos_token_ids: Iterable[int]) -> None:
        self._model = model
        config = copy.deepcopy(model.generation_config)
        _refuse_other_searches(config)
        eos = sorted(eos_token_ids)
        config._eos_token_tensor = torch.tensor(eos, device=model.device) if eos else None
        self._config = config
        self._min_p: float | None = getattr(config, "min_p", None)
        self._is_late = any(_is_set(config, name, LATE_FIELDS[name]) for name in LATE_FIELDS)
        active = {name for name in _APPLIED if _is_set(config, name, _APPLIED[name])}
        if not eos:
            active -= {"min_length", "min_new_tokens", "exponential_decay_length_penalty"}
            config.exponential_decay_length_penalty = None
        self._has_processors = any(name in PROCESSOR_FIELDS for name in active)
        self._has_watermark = "watermarking_config" in active
        self.applied: Mapping[str, object] = {
            name: _plain(getattr(config, name)) for name in sorted(active)
        }
        stop = getattr(config, "stop_strings", None) or ()
        self.stop: tuple[str, ...] = (stop,) if isinstance(stop, str) else tuple(stop)
        self._check(active)

    def row_logits(self, spec: GenerationSpec) -> HfRowLogits | None:
        """Make the changes to the logits of one request; None when there are none."""
        sampling = self._with_defaults(spec.sampling)
        # Positions that hold embeddings have no token to be counted.
        prompt = spec.prompt.text_only()
        is_late = self._is_late and (not sampling.is_greedy or self._has_watermark)
        processors = LogitsProcessorList()
        if sampling.logit_bias:
            processors.append(LogitBias(sampling.logit_bias))
        penalty = LogitsProcessorList()
        if sampling.presence_penalty or sampling.frequency_penalty:
            penalty.append(
                CountPenalty(sampling.presence_penalty, sampling.frequency_penalty, len(prompt))
            )
        if self._has_processors or is_late or sampling.repetition_penalty not in (None, 1.0):
            processors += self._model_processors(prompt, sampling, is_late, penalty)
        else:
            processors += penalty
        if not processors and sampling == spec.sampling:
            return None
        if is_late and not sampling.is_greedy:
            # The processors hold the filters of the request, too.
            sampling = replace(sampling, temperature=1.0, top_p=1.0, top_k=0, min_p=None)
        return HfRowLogits(processors, sampling, prompt)

    def _with_defaults(self, sampling: SamplingParams) -> SamplingParams:
        if self._min_p is None or sampling.min_p is not None:
            return sampling
        return replace(sampling, min_p=self._min_p)

    def _model_processors(
        self, prompt: Prompt, sampling: SamplingParams, is_late: bool, own: LogitsProcessorList
    ) -> Any:
        """Build what `generate` would for these parameters; `own` precedes the filters."""
        config = copy.copy(self._config)
        num_prompt = len(prompt)
        config.max_length = num_prompt + sampling.max_new_tokens
        if config.min_new_tokens is not None:
            config.min_length = num_prompt + config.min_new_tokens
        if sampling.repetition_penalty is not None:
            config.repetition_penalty = sampling.repetition_penalty
        config.do_sample = is_late and not sampling.is_greedy
        if config.do_sample:
            config.temperature = max(sampling.temperature, 1e-6)
            config.top_k, config.top_p = sampling.top_k, sampling.top_p
            config.min_p = sampling.min_p
        device = self._model.device
        return self._model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=num_prompt,
            encoder_input_ids=torch.tensor([prompt.token_ids], dtype=torch.long, device=device),
            logits_processor=own,
            device=device,
        )

    def _check(self, active: Iterable[str]) -> None:
        """Build and run each processor alone, so that an error names the bad value."""
        whole = self._config
        vocab_size = self._model.config.get_text_config().vocab_size
        sampling = SamplingParams(max_new_tokens=1, seed=0)
        for name in active:
            self._config = copy.copy(whole)
            for other in {*PROCESSOR_FIELDS, *LATE_FIELDS} - {name}:
                setattr(self._config, other, None)
            logits = torch.zeros(1, vocab_size, device=self._model.device)
            prompt = Prompt((0,))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    late = name in LATE_FIELDS
                    processors = self._model_processors(
                        prompt, sampling, late, LogitsProcessorList()
                    )
                    processors(torch.zeros(1, 1, dtype=torch.long, device=logits.device), logits)
            except Exception as error:
                raise UnsupportedModelError(
                    f"generation_config.json: {name} {_plain(getattr(whole, name))!r} cannot be "
                    f"applied: {error}"
                ) from error
        self._config = whole


class HfRowLogits:
    """The processors of one request, and its tokens as they read them.

    Args:
        processors: called with the tokens of prompt and plan, and the logits.
        sampling: how to draw from the result.
        prompt: of the request.
    """

    def __init__(
        self, processors: LogitsProcessorList, sampling: SamplingParams, prompt: Prompt
    ) -> None:
        self.sampling = sampling
        self._processors = processors
        self._token_ids = torch.empty(1, len(prompt) + sampling.max_new_tokens, dtype=torch.long)
        self._num_prompt = self._num_tokens = len(prompt)
        self._token_ids[0, : len(prompt)] = torch.tensor(prompt.token_ids)

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Change the logits `[1, vocab_size]` float32 of the token after `token_ids`."""
        if self._token_ids.device != logits.device:
            self._token_ids = self._token_ids.to(logits.device)
        new = token_ids[self._num_tokens - self._num_prompt :]
        end = self._num_tokens + len(new)
        if new:
            self._token_ids[0, self._num_tokens : end] = torch.tensor(new)
        self._num_tokens = end
        input_ids = cast(torch.LongTensor, self._token_ids[:, :end])
        changed: torch.Tensor = self._processors(input_ids, logits)
        return changed


def _refuse_other_searches(config: Any) -> None:
    for name, neutral in REFUSED_FIELDS.items():
        if _is_set(config, name, neutral):
            raise UnsupportedModelError(
                f"generation_config.json sets {name} to {_plain(getattr(config, name))!r}, which "
                "this service does not do; remove it from the file to serve the model without it"
            )
    cache = getattr(config, "cache_implementation", None)
    if cache in _REFUSED_CACHES:
        raise UnsupportedModelError(
            f"generation_config.json sets cache_implementation to {cache!r}, which this service "
            "does not do; remove it from the file to serve the model without it"
        )


def _is_set(config: Any, name: str, neutral: Sequence[Any]) -> bool:
    value = getattr(config, name, None)
    return value is not None and value not in neutral


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        # `sequence_bias` may have tuples of token ids as keys.
        return {
            str(key) if not isinstance(key, tuple) else ",".join(map(str, key)): _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value
