"""vLLM as a backend: its processes run the model, this one has prompts, turns, text and rows.

Importing this module imports vLLM, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import vllm
from vllm import AsyncEngineArgs
from vllm.platforms import current_platform

from latentwire_service.engine.backend import (
    LATENT_STEPS,
    LATENTS_IN,
    SCORING,
    BackendInfo,
    GenerationSpec,
    Occupancy,
    OnStep,
    StepStats,
)
from latentwire_service.engine.detokenizer import Tokenizer
from latentwire_service.engine.engine_thread import EngineThread, SubmittedRequest
from latentwire_service.engine.errors import EngineError, ModelError
from latentwire_service.engine.hf.generation import checked_settings
from latentwire_service.engine.hf.loader import ModelFiles, read_files
from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.hf.vocabulary import Vocabulary
from latentwire_service.engine.prompt import Conversation, Prompt
from latentwire_service.engine.seams.bridge import Bridge, BridgeError, Rows
from latentwire_service.settings import Settings
from latentwire_service.vllm_engine.core import ROW_WORKER, LoadedCore, MakeCore, VllmCore
from latentwire_service.vllm_engine.engine import VllmEngine
from latentwire_service.vllm_engine.options import (
    TESTED_VERSIONS,
    ModelShape,
    check_sizes,
    engine_args,
)
from latentwire_service.vllm_engine.sampling import FIELD_REFUSALS, VllmSampling
from latentwire_service.vllm_engine.self_check import check_rows

logger = logging.getLogger(__name__)

ENGINE = "vllm"
# Kinds of devices of which vLLM has as many as it has workers.
_COUNTED = ("cuda", "xpu")
_REFUSALS: Mapping[str, str] = {
    LATENTS_IN: "the vLLM engine reads text only; --engine latentwire reads latents",
    LATENT_STEPS: "the vLLM engine makes no latent steps; --engine latentwire does",
    SCORING: "the vLLM engine does not score given plans; --engine latentwire does",
}


class NoBridges:
    """The bridges of an engine that reads no latents."""

    def __iter__(self) -> Iterator[Bridge]:
        """Yield nothing."""
        return iter(())

    @property
    def default_step(self) -> str:
        """A name that no bridge has."""
        return ""

    def get(self, name: str) -> NoReturn:
        """Refuse every name."""
        raise BridgeError(f"there is no bridge {name!r}: {_REFUSALS[LATENTS_IN]}")

    def step_start(self, name: str) -> Rows | None:
        """Refuse every name."""
        self.get(name)

    def step(self, name: str) -> Any:
        """Refuse every name."""
        self.get(name)


@dataclass(frozen=True, slots=True)
class _Started:
    """The parts of a backend whose model is loaded."""

    core: LoadedCore
    engine: VllmEngine
    thread: EngineThread
    encoder: PromptEncoder
    vocabulary: Vocabulary
    sampling: VllmSampling
    info: BackendInfo
    stop: tuple[str, ...]


class VllmBackend:
    """A model in vLLM's processes.

    Args:
        settings: of the whole service.
        on_step: called on the engine's thread after each step.
        on_failure: called on the engine's thread once the engine is lost.
        make_core: makes what the engine talks to; tests share, hold or break a real one with it.
        wrap_tokenizer: replaces the tokenizer that decodes.
    """

    def __init__(
        self,
        settings: Settings,
        on_step: Callable[[StepStats], None],
        on_failure: Callable[[Exception], None],
        make_core: MakeCore = VllmCore,
        wrap_tokenizer: Callable[[Tokenizer], Tokenizer] = lambda tokenizer: tokenizer,
    ) -> None:
        self._settings = settings
        self._on_step = on_step
        self._on_failure = on_failure
        self._make_core = make_core
        self._wrap_tokenizer = wrap_tokenizer
        self._started: _Started | None = None

    @property
    def info(self) -> BackendInfo:
        """Facts about the model; only after `load`."""
        return self._require().info

    @property
    def bridges(self) -> NoBridges:
        """None: the engine reads no latents."""
        return NoBridges()

    @property
    def occupancy(self) -> Occupancy:
        """How busy the engine is; only after `load`."""
        return self._require().thread.occupancy

    @property
    def is_alive(self) -> bool:
        """Whether a thread of the engine runs."""
        started = self._started
        return started is not None and (started.thread.is_alive() or started.core.is_alive)

    @property
    def step_age_s(self) -> float:
        """Seconds since vLLM last reported something, while requests run; else 0."""
        return 0.0 if self._started is None else self._started.engine.stall_s

    def load(self) -> None:
        """Start vLLM and check its rows. Blocks for a minute or more.

        Raises:
            ModelError: the model cannot be served with the given settings.
        """
        settings = self._settings
        _warn_about_version(vllm.__version__)
        device = current_platform.device_type
        if settings.device not in ("auto", device):
            raise ModelError(f"--device {settings.device}: this vLLM is made for {device}")
        files = read_files(
            settings.model,
            cache_dir=settings.cache_dir.expanduser(),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        num_devices = current_platform.device_count() if device in _COUNTED else None
        check_sizes(settings, _shape_of(files), num_devices)
        sampling = VllmSampling(checked_settings(files.generation_config), files.eos_token_ids)
        args = engine_args(
            settings,
            {field.name for field in fields(AsyncEngineArgs)},
            location=files.location,
            revision=files.revision,
            device=device,
            model_max_len=files.max_positions,
        )
        core = self._make_core({**args, "worker_extension_cls": ROW_WORKER}, self._lose)
        core.start()
        try:
            self._started = self._start(core, files, sampling, device)
        except BaseException:
            core.stop()
            raise

    def encode_prompt(self, conversation: Conversation) -> Prompt:
        """Make the prompt of a conversation, as `Backend.encode_prompt`."""
        started = self._require()
        return started.vocabulary.check(started.encoder.encode(conversation))

    def encode_plan(self, text: str) -> Prompt:
        """Tokenize a plan, as `Backend.encode_plan`."""
        started = self._require()
        return started.vocabulary.check(started.encoder.encode_plan(text))

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> SubmittedRequest:
        """Queue a request, as `Backend.submit`."""
        started = self._require()
        started.info.check(spec)
        started.sampling.params_of(spec)
        if started.stop:
            stop = (*spec.sampling.stop, *started.stop)
            spec = replace(spec, sampling=replace(spec.sampling, stop=stop))
        return started.thread.submit(spec, on_step)

    def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests, finish the accepted ones, and end, as `Backend.drain`."""
        started = self._require()
        if not started.thread.stop(timeout_s):
            return False
        started.core.stop()
        return True

    def abort(self, error: EngineError) -> None:
        """Refuse new requests and fail the accepted ones from the next step on."""
        self._require().thread.abort(error)

    def _require(self) -> _Started:
        assert self._started is not None, "used before `load`"
        return self._started

    def _lose(self, error: Exception) -> None:
        """Fail because vLLM's processes are gone."""
        if self._started is not None:
            self._started.thread.lose(error)

    def _start(
        self, core: LoadedCore, files: ModelFiles, sampling: VllmSampling, device: str
    ) -> _Started:
        facts = core.facts
        encoder = PromptEncoder(
            files.tokenizer,
            files.eos_token_ids,
            ignores_template=self._settings.ignore_chat_template,
        )
        vocabulary = Vocabulary(facts.vocab_size)
        vocabulary.warn_about_ends(files.eos_token_ids)
        info = BackendInfo(
            model_id=files.model_id,
            revision=files.revision,
            hidden_size=facts.hidden_size,
            vocab_size=vocabulary.size,
            dtype=facts.dtype,
            device=device,
            max_slots=facts.max_slots,
            max_model_len=facts.max_model_len,
            generation_defaults=checked_settings(files.generation_config),
            refusals={**_REFUSALS, **FIELD_REFUSALS},
            engine=ENGINE,
            engine_version=vllm.__version__,
        )
        check_rows(core, files, info, is_quantized=facts.is_quantized)
        engine = VllmEngine(
            core,
            sampling.params_of,
            self._wrap_tokenizer(files.tokenizer),
            files.eos_token_ids,
            info.hidden_size,
            info.max_slots,
            time.monotonic,
        )
        thread = EngineThread(
            engine, info.max_slots, self._settings.max_queue, self._on_step, self._on_failure
        )
        thread.start()
        stop = files.generation_config.stop_strings or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        return _Started(core, engine, thread, encoder, vocabulary, sampling, info, stop)


def _shape_of(files: ModelFiles) -> ModelShape:
    config = files.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layers.
    kinds = ropes.values() if all(isinstance(each, dict) for each in ropes.values()) else [ropes]
    return ModelShape(
        max_positions=files.max_positions,
        is_stretched=any(each.get("rope_type", "default") != "default" for each in kinds),
        num_heads=getattr(config, "num_attention_heads", None),
        num_layers=getattr(config, "num_hidden_layers", None),
    )


def _warn_about_version(version: str) -> None:
    if not any(version == known or version.startswith(f"{known}.") for known in TESTED_VERSIONS):
        logger.warning(
            "vLLM %s was not tested with this version of latentwire; it was tested with %s. The "
            "check of hidden rows at the start decides",
            version,
            ", ".join(TESTED_VERSIONS),
        )
