"""Settings of `generation_config.json` that choose tokens, applied as `generate` applies them.

The processors are those that transformers itself builds, in its order. Temperature, top-p, top-k
and the number of tokens come from the request. Settings that need another search are refused, and
so are settings of a newer transformers that no table here names.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.errors import DamagedModelError, UnsupportedModelError
from latentwire_service.engine.hf.penalties import CountPenalty, LogitBias
from latentwire_service.engine.logits import RowLogits, TokenPenalties
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
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
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
    "is_assistant": (False,),
}
# The request's own fields.
REQUEST_FIELDS = frozenset(
    ["max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p"]
)
# Fields that change neither tokens nor their order: caches, forms of output, speed, token ids that
# the loader reads, and settings of searches that are refused.
IGNORED_FIELDS = frozenset(
    [
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "diversity_penalty",
        "early_stopping",
        "eos_token_id",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "renormalize_logits",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    ]
)
# A cache in fewer bits gives other logits.
_REFUSED_CACHES = ("quantized",)

_REPETITION = "repetition_penalty"
_NO_PENALTIES = TokenPenalties()

_APPLIED = {**PROCESSOR_FIELDS, **LATE_FIELDS, **SAMPLER_FIELDS, **STOPPING_FIELDS}


class GenerationDefaults:
    """A model's generation defaults, checked once.

    Args:
        model: a causal LM; its `generation_config` is not changed.
        eos_token_ids: tokens that end generation.

    Raises:
        DamagedModelError: `generation_config.json` cannot be read.
        UnsupportedModelError: the configuration sets what this service does not do, or a value
            that transformers cannot use.
    """

    def __init__(self, model: Any, eos_token_ids: Iterable[int]) -> None:
        _check_file(model)
        self._model = model
        config = copy.deepcopy(model.generation_config)
        _refuse_other_searches(config)
        _refuse_unknown(config)
        eos = sorted(eos_token_ids)
        config._eos_token_tensor = torch.tensor(eos, device=model.device) if eos else None
        self._config = config
        self._min_p: float | None = getattr(config, "min_p", None)
        self._is_late = any(_is_set(config, name, LATE_FIELDS[name]) for name in LATE_FIELDS)
        active = {name for name in _APPLIED if _is_set(config, name, _APPLIED[name])}
        if not eos:
            active -= {"min_length", "min_new_tokens", "exponential_decay_length_penalty"}
            config.exponential_decay_length_penalty = None
        self._has_watermark = "watermarking_config" in active
        # Repetition penalties are computed for all rows at once, unless other processors surround
        # them.
        self._has_others = any(name in PROCESSOR_FIELDS for name in active - {_REPETITION})
        self._repetition: float = 1.0
        self.applied: Mapping[str, object] = {
            name: _plain(getattr(config, name)) for name in sorted(active)
        }
        self.stop = _stop_strings(config)
        self._check(active)
        if _REPETITION in active:
            self._repetition = config.repetition_penalty

    def row_logits(self, spec: GenerationSpec) -> RowLogits | None:
        """Make the changes to the logits of one request; None when there are none."""
        sampling = self._with_defaults(spec.sampling)
        is_late = self._is_late and (not sampling.is_greedy or self._has_watermark)
        if self._has_others or is_late:
            return self._row_by_row(spec, sampling, is_late)
        repetition = sampling.repetition_penalty
        penalties = TokenPenalties(
            sampling.logit_bias,
            self._repetition if repetition is None else repetition,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        if penalties != _NO_PENALTIES:
            return RowLogits(sampling, penalties)
        return None if sampling == spec.sampling else RowLogits(sampling)

    def _row_by_row(
        self, spec: GenerationSpec, sampling: SamplingParams, is_late: bool
    ) -> RowLogits:
        """Make changes that run for this request alone."""
        # Positions that hold embeddings have no token to be counted.
        prompt = spec.prompt.text_only()
        processors = LogitsProcessorList()
        if sampling.logit_bias:
            processors.append(LogitBias(sampling.logit_bias))
        counts = LogitsProcessorList()
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts.append(
                CountPenalty(sampling.presence_penalty, sampling.frequency_penalty, len(prompt))
            )
        processors += self._model_processors(prompt, sampling, is_late, counts)
        process = HfProcessors(processors, sampling.max_new_tokens, prompt)
        if is_late and not sampling.is_greedy:
            # The processors hold the filters of the request, too.
            sampling = replace(sampling, temperature=1.0, top_p=1.0, top_k=0, min_p=None)
        return RowLogits(sampling, process=process)

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
                    late = name in LATE_FIELDS or name in SAMPLER_FIELDS
                    used = self._with_defaults(sampling) if name in SAMPLER_FIELDS else sampling
                    processors = self._model_processors(prompt, used, late, LogitsProcessorList())
                    processors(torch.zeros(1, 1, dtype=torch.long, device=logits.device), logits)
            except Exception as error:
                raise UnsupportedModelError(
                    f"generation_config.json: {name} {_plain(getattr(whole, name))!r} cannot be "
                    f"applied: {error}"
                ) from error
        self._config = whole


class HfProcessors:
    """The processors of one request, and its tokens as they read them.

    Args:
        processors: called with the tokens of prompt and plan, and the logits.
        max_new_tokens: of the request.
        prompt: of the request.
    """

    def __init__(
        self, processors: LogitsProcessorList, max_new_tokens: int, prompt: Prompt
    ) -> None:
        self._processors = processors
        self._token_ids = torch.empty(1, len(prompt) + max_new_tokens, dtype=torch.long)
        self._num_prompt = self._num_tokens = len(prompt)
        self._token_ids[0, : len(prompt)] = torch.tensor(prompt.token_ids, dtype=torch.long)

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


def checked_settings(config: GenerationConfig) -> Mapping[str, object]:
    """Return the settings of a configuration that change the choice of tokens, as JSON values.

    Raises:
        UnsupportedModelError: it sets what this service does not do.
    """
    _refuse_other_searches(config)
    _refuse_unknown(config)
    _stop_strings(config)
    return {
        name: _plain(getattr(config, name))
        for name in sorted(_APPLIED)
        if _is_set(config, name, _APPLIED[name])
    }


def _check_file(model: Any) -> None:
    """Refuse a `generation_config.json` that transformers ignores because it cannot be read.

    Raises:
        DamagedModelError: the file is no JSON object.
    """
    location, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if not location:
        return
    file = cached_file(
        location,
        GENERATION_CONFIG_NAME,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if file is None:
        return
    try:
        is_object = isinstance(json.loads(Path(file).read_bytes()), dict)
    except ValueError as error:
        raise DamagedModelError(f"{GENERATION_CONFIG_NAME} cannot be read: {error}") from error
    if not is_object:
        raise DamagedModelError(f"{GENERATION_CONFIG_NAME} does not hold a JSON object")


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


def _refuse_unknown(config: Any) -> None:
    """Refuse a setting that this version of transformers reads and no table here names."""
    known = {*_APPLIED, *REFUSED_FIELDS, *REQUEST_FIELDS, *IGNORED_FIELDS}
    neutral = GenerationConfig._get_default_generation_params()
    for name in vars(GenerationConfig()):
        is_known = name in known or name.startswith("_")
        if not is_known and _is_set(config, name, (neutral.get(name), False)):
            raise UnsupportedModelError(
                f"generation_config.json sets {name} to {_plain(getattr(config, name))!r}, which "
                f"transformers {transformers.__version__} applies and this service does not know; "
                "remove it from the file to serve the model without it"
            )


def _stop_strings(config: Any) -> tuple[str, ...]:
    value = getattr(config, "stop_strings", None) or ()
    stop = (value,) if isinstance(value, str) else value
    if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
        raise UnsupportedModelError(
            f"generation_config.json: stop_strings {_plain(value)!r} cannot be applied: it must "
            "hold texts that are not empty"
        )
    return tuple(stop)


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
