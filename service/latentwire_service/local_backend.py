"""Our own engine as a backend: a model loaded into this process, run by a thread of its own.

Knows neither HTTP nor asyncio. Importing this module imports torch, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.registry import BridgeRegistry, load_registry
from latentwire_service.engine.backend import (
    LATENT_STEPS,
    LATENTS_IN,
    SCORING,
    BackendInfo,
    ComputeDtype,
    GenerationSpec,
    Occupancy,
    OnStep,
    StepStats,
)
from latentwire_service.engine.detokenizer import Tokenizer
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.engine_thread import EngineThread, SubmittedRequest
from latentwire_service.engine.errors import EngineError, ModelError
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.cpu.cpu_tuning import give_way
from latentwire_service.engine.hf.cpu.linear import bytes_kept_twice
from latentwire_service.engine.hf.generation import GenerationDefaults
from latentwire_service.engine.hf.loader import LoadedModel, load_model, pick_device, pick_dtype
from latentwire_service.engine.hf.memory import Capacity, available_bytes, plan_capacity
from latentwire_service.engine.hf.probe import Probe, probe
from latentwire_service.engine.hf.prompt_encoder import PromptEncoder
from latentwire_service.engine.hf.vocabulary import Vocabulary
from latentwire_service.engine.prefix_cache import MAX_PREFIX_TOKENS
from latentwire_service.engine.prompt import Conversation, Prompt
from latentwire_service.engine.runner import ModelRunner
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.settings import Settings

logger = logging.getLogger(__name__)

_DTYPE_NAMES: Mapping[torch.dtype, ComputeDtype] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


@dataclass(frozen=True, slots=True)
class _Started:
    """The parts of a backend whose model is loaded."""

    loaded: LoadedModel
    bridges: BridgeRegistry
    encoder: PromptEncoder
    vocabulary: Vocabulary
    info: BackendInfo
    thread: EngineThread
    stop: tuple[str, ...]


class LocalBackend:
    """A Hugging Face model in this process.

    Args:
        settings: of the whole service.
        on_step: called on the engine's thread after each step.
        on_failure: called on the engine's thread once the engine is lost.
        wrap_runner: replaces the runner; tests hold or break a real one with it.
        wrap_tokenizer: replaces the tokenizer that decodes.
    """

    def __init__(
        self,
        settings: Settings,
        on_step: Callable[[StepStats], None],
        on_failure: Callable[[Exception], None],
        wrap_runner: Callable[[ModelRunner], ModelRunner] = lambda runner: runner,
        wrap_tokenizer: Callable[[Tokenizer], Tokenizer] = lambda tokenizer: tokenizer,
    ) -> None:
        self._settings = settings
        self._on_step = on_step
        self._on_failure = on_failure
        self._wrap_runner = wrap_runner
        self._wrap_tokenizer = wrap_tokenizer
        self._started: _Started | None = None

    @property
    def info(self) -> BackendInfo:
        """Facts about the model; only after `load`."""
        return self._require().info

    @property
    def bridges(self) -> BridgeRegistry:
        """What makes input embeddings of hidden rows; only after `load`."""
        return self._require().bridges

    @property
    def occupancy(self) -> Occupancy:
        """How busy the engine is; only after `load`."""
        return self._require().thread.occupancy

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread may be computing."""
        return self._started is not None and self._started.thread.is_alive()

    @property
    def step_age_s(self) -> float:
        """Seconds since the current step began; 0 while none runs."""
        return 0.0 if self._started is None else self._started.thread.step_age_s

    def load(self) -> None:
        """Load the model, divide the memory, start the engine. Blocks for seconds to minutes.

        Raises:
            ModelError: the model cannot be served with the given settings.
        """
        settings = self._settings
        _quieten_libraries()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = pick_device(settings.device)
        loaded = load_model(
            settings.model,
            device=device,
            dtype=pick_dtype(settings.dtype, device),
            cache_dir=settings.cache_dir.expanduser(),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        # Before anything reads the weights: a generator replaces them, and the runner packs them.
        bridges = _load_bridges(loaded, settings)
        probed = probe(loaded.model)
        capacity = plan_slots(settings, loaded, probed)
        self._started = self._start(loaded, bridges, probed, capacity)

    def encode_prompt(self, conversation: Conversation) -> Prompt:
        """Make the prompt of a conversation, as `Backend.encode_prompt`."""
        started = self._require()
        return started.vocabulary.check(started.encoder.encode(conversation))

    def encode_plan(self, text: str) -> Prompt:
        """Tokenize a plan to be scored, as `Backend.encode_plan`."""
        started = self._require()
        return started.vocabulary.check(started.encoder.encode_plan(text))

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> SubmittedRequest:
        """Queue a request, as `Backend.submit`."""
        started = self._require()
        started.info.check(spec)
        if started.stop:
            stop = (*spec.sampling.stop, *started.stop)
            spec = replace(spec, sampling=replace(spec.sampling, stop=stop))
        return started.thread.submit(spec, on_step)

    def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests, finish the accepted ones, and end, as `Backend.drain`."""
        return self._require().thread.stop(timeout_s)

    def abort(self, error: EngineError) -> None:
        """Refuse new requests and fail the accepted ones from the next step on."""
        self._require().thread.abort(error)

    def _require(self) -> _Started:
        assert self._started is not None, "used before `load`"
        return self._started

    def _start(
        self, loaded: LoadedModel, bridges: BridgeRegistry, probed: Probe, capacity: Capacity
    ) -> _Started:
        model = loaded.model
        encoder = PromptEncoder(
            loaded.tokenizer,
            loaded.eos_token_ids,
            ignores_template=self._settings.ignore_chat_template,
        )
        vocabulary = Vocabulary.of(model, loaded.tokenizer)
        vocabulary.warn_about_ends(loaded.eos_token_ids)
        defaults = GenerationDefaults(model, loaded.eos_token_ids)
        thread = self._start_thread(loaded, probed, capacity, defaults)
        capabilities, refusals = _capabilities(probed)
        info = BackendInfo(
            model_id=loaded.model_id,
            revision=loaded.revision,
            hidden_size=probed.hidden_size,
            vocab_size=vocabulary.size,
            dtype=_DTYPE_NAMES[model.dtype],
            device=model.device.type,
            max_slots=capacity.max_slots,
            max_model_len=capacity.max_model_len,
            generation_defaults=defaults.applied,
            embedding_size=probed.embedding_size,
            capabilities=capabilities,
            refusals=refusals,
            bridges=tuple(bridges),
            engine_version=version("latentwire"),
        )
        if defaults.applied:
            logger.info("generation_config.json sets %s", dict(defaults.applied))
        return _Started(loaded, bridges, encoder, vocabulary, info, thread, defaults.stop)

    def _start_thread(
        self,
        loaded: LoadedModel,
        probed: Probe,
        capacity: Capacity,
        defaults: GenerationDefaults,
    ) -> EngineThread:
        settings = self._settings
        runner = self._wrap_runner(
            build_runner(
                loaded.model,
                probed,
                capacity.max_slots,
                capacity.max_model_len,
                compile_decode=settings.compile,
            )
        )
        engine = Engine(
            runner,
            self._wrap_tokenizer(loaded.tokenizer),
            loaded.eos_token_ids,
            settings.prefill_chunk,
            time.monotonic,
            defaults.row_logits,
        )
        thread = EngineThread(
            engine,
            capacity.max_slots,
            settings.max_queue,
            self._on_step,
            self._on_failure,
            give_way if loaded.model.device.type == "cpu" else None,
        )
        thread.start()
        return thread


def _load_bridges(loaded: LoadedModel, settings: Settings) -> BridgeRegistry:
    """Make and load the bridges of a model.

    Raises:
        ModelError: a bridge cannot be used with it.
    """
    receiver = Receiver(loaded.model, loaded.model_id, loaded.revision)
    try:
        return load_registry(receiver, settings.bridge, settings.latent_generator)
    except BridgeError as error:
        raise ModelError(f"{error}. {error.hint}".rstrip(". ")) from error


def _capabilities(probed: Probe) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return what the engine can do with the model, and why it cannot do the rest."""
    if probed.embedding_refusal is None:
        return frozenset({LATENTS_IN, LATENT_STEPS, SCORING}), {}
    logger.warning("the model takes no latents: %s", probed.embedding_refusal)
    return frozenset({SCORING}), dict.fromkeys((LATENTS_IN, LATENT_STEPS), probed.embedding_refusal)


def plan_slots(settings: Settings, loaded: LoadedModel, probed: Probe) -> Capacity:
    """Decide how many slots of which length fit into memory, and log it.

    Raises:
        ModelError: the settings need more memory than there is.
    """
    model, device = loaded.model, loaded.model.device
    limits = (loaded.max_positions, probed.max_positions)
    bytes_per_position = probed.values_per_position * model.dtype.itemsize
    # Memory that is taken after the plan is made.
    reserved_bytes = MAX_PREFIX_TOKENS * bytes_per_position
    reserved_bytes += bytes_kept_twice(model, probed.linear_calls)
    capacity = plan_capacity(
        max_slots=None if settings.max_slots == "auto" else settings.max_slots,
        max_model_len=None if settings.max_model_len == "auto" else settings.max_model_len,
        model_max_len=min((limit for limit in limits if limit is not None), default=None),
        bytes_per_position=bytes_per_position,
        row_bytes=probed.hidden_size * 4,
        available=available_bytes(device) - reserved_bytes,
        host_available=None if device.type == "cpu" else available_bytes(torch.device("cpu")),
        memory_fraction=settings.memory_fraction,
    )
    logger.info(
        "%s, %s on %s: %d slots of %d positions, KV cache %.0f MiB of %.0f MiB allowed",
        loaded.model_id,
        model.dtype,
        device.type,
        capacity.max_slots,
        capacity.max_model_len,
        capacity.cache_bytes / 2**20,
        capacity.budget_bytes / 2**20,
    )
    return capacity


def _quieten_libraries() -> None:
    """Route the libraries' records through our logging, which cuts paths; hide progress bars."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    hub_logging.set_verbosity_error()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_logger.handlers.clear()
    hub_logging.enable_propagation()
