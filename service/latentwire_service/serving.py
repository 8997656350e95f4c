"""The service's life: load the model in the background, serve, drain, or fail.

This is the seam between asyncio and the engine's thread. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from latentwire.protocol import DtypeName, InfoResponse, Limits, PlanLatentRequest
from latentwire_service.engine.build import build_runner, probe
from latentwire_service.engine.detokenizer import Detokenizer
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.engine_thread import EngineThread
from latentwire_service.engine.errors import (
    EngineUnavailableError,
    InvalidParamsError,
    ModelError,
    PromptTooLongError,
)
from latentwire_service.engine.loader import LoadedModel, load_model, pick_device, pick_dtype
from latentwire_service.engine.memory import Capacity, available_bytes, plan_capacity
from latentwire_service.engine.prompt import encode_prompt, fill_template
from latentwire_service.engine.request import Completion, HiddenRows, Request
from latentwire_service.engine.sampling_params import SamplingParams
from latentwire_service.metrics import Metrics
from latentwire_service.settings import Settings

logger = logging.getLogger(__name__)


_DTYPE_NAMES: Mapping[torch.dtype, DtypeName] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


class State(enum.Enum):
    """Where the service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Plan:
    """A finished request, with what its answer states beside the completion."""

    request_id: str
    seed: int
    completion: Completion


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model and the thread that runs it."""

    loaded: LoadedModel
    capacity: Capacity
    hidden_size: int
    vocab_size: int
    thread: EngineThread


class Serving:
    """One model, served.

    Args:
        settings: of the whole service.
        metrics: where steps and completions are counted.
        version: shown in `/info`.
        on_failed: called, on any thread, when nothing can be served any more.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        version: str,
        on_failed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._version = version
        self._on_failed = on_failed
        self._served: Served | None = None
        self._state = State.LOADING
        self._state_lock = threading.Lock()
        # A daemon, like the engine's thread: hours of loading must not keep a dying process alive.
        self._loader = threading.Thread(target=self._load, name="loader", daemon=True)
        self.failure: Exception | None = None

    @property
    def state(self) -> State:
        """Where the service is in its life."""
        return self._state

    def start_loading(self) -> None:
        """Load the model on a thread of its own; `/health` answers meanwhile."""
        self._loader.start()

    @property
    def is_at_work(self) -> bool:
        """Whether a thread of the model is still loading or computing."""
        is_computing = self._served is not None and self._served.thread.is_alive()
        return is_computing or self._loader.is_alive()

    def drain(self) -> None:
        """Refuse new requests, finish those taken. Blocks until they are finished."""
        with self._state_lock:
            if self._state in (State.LOADING, State.READY):
                self._state = State.DRAINING
        if self._served is not None:
            self._served.thread.stop()

    def info(self) -> InfoResponse:
        """Describe what is served.

        Raises:
            EngineUnavailableError: the model is not loaded.
        """
        served = self._require()
        model = served.loaded.model
        return InfoResponse(
            model=served.loaded.model_id,
            revision=served.loaded.revision,
            hidden_size=served.hidden_size,
            vocab_size=served.vocab_size,
            dtype=_DTYPE_NAMES[model.dtype],
            device=model.device.type,
            limits=Limits(
                max_slots=served.capacity.max_slots,
                max_model_len=served.capacity.max_model_len,
                max_queue=self._settings.max_queue,
                max_body_bytes=self._settings.max_body_bytes,
            ),
            version=self._version,
            compressors=[],
        )

    def observe_load(self) -> None:
        """Bring the load gauges up to date."""
        if self._served is not None:
            load = self._served.thread.load
            self._metrics.observe_load(load.num_running, load.num_waiting)

    async def plan(self, body: PlanLatentRequest, k: int | None) -> Plan:
        """Run one request to its end; when the awaiting task is cancelled, so is the request.

        Raises:
            EngineError: whatever the engine has to say against it.
        """
        served = self._require(State.READY)
        request = await asyncio.to_thread(self._build_request, served, body, k)
        served.thread.submit(request)
        try:
            completion = await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            served.thread.cancel(request)
            raise
        self._metrics.observe_completion(completion)
        return Plan(request.request_id, request.params.seed, completion)

    def _build_request(self, served: Served, body: PlanLatentRequest, k: int | None) -> Request:
        """Tokenize and check; off the event loop, because a long prompt takes milliseconds."""
        tokenizer = served.loaded.tokenizer
        prompt = fill_template(body.prompt_template, body.task)
        token_ids = encode_prompt(tokenizer, prompt, body.chat_template)
        max_model_len = served.capacity.max_model_len
        if not token_ids:
            raise InvalidParamsError("prompt_template", "the prompt has no tokens")
        if len(token_ids) + body.max_new_tokens > max_model_len:
            raise PromptTooLongError(len(token_ids), body.max_new_tokens, max_model_len)
        params = SamplingParams(
            max_new_tokens=body.max_new_tokens,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            do_sample=body.do_sample,
            temperature=body.temperature,
            top_p=body.top_p,
            # No vocabulary is larger than itself, and the sampler's integers are 64 bits wide.
            top_k=min(body.top_k, served.vocab_size),
            stop=tuple(body.stop),
        )
        max_rows = body.max_new_tokens if k is None else min(k, body.max_new_tokens)
        return Request(
            request_id=f"plan-{secrets.token_hex(12)}",
            prompt_token_ids=token_ids,
            params=params,
            rows=HiddenRows(max_rows, served.hidden_size),
            detokenizer=Detokenizer(tokenizer, params.stop),
            submitted_at=time.monotonic(),
        )

    def _require(self, *states: State) -> Served:
        if self._served is None or (states and self._state not in states):
            raise EngineUnavailableError(f"the service is {self._state.value}")
        return self._served

    def _load(self) -> None:
        started = time.monotonic()
        try:
            served = self._build()
        except ModelError as error:
            logger.error("cannot serve the model: %s", " ".join(str(error).split()))
            logger.debug("the reason", exc_info=error.__cause__)
            self._fail(error)
        except Exception as error:
            # The boundary of the loader's thread: anything else is a failure to start, too.
            logger.exception("loading failed")
            self._fail(error)
        else:
            with self._state_lock:
                self._served = served
                if self._state is State.LOADING:
                    self._state = State.READY
            logger.info("ready after %.1f s", time.monotonic() - started)

    def _build(self) -> Served:
        settings = self._settings
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
        probed = probe(loaded.model)
        capacity = plan_capacity(
            max_slots=None if settings.max_slots == "auto" else settings.max_slots,
            max_model_len=None if settings.max_model_len == "auto" else settings.max_model_len,
            model_max_len=loaded.max_positions,
            bytes_per_position=probed.values_per_position * loaded.model.dtype.itemsize,
            row_bytes=probed.hidden_size * 4,
            available=available_bytes(device),
            memory_fraction=settings.memory_fraction,
        )
        logger.info(
            "%s, %s on %s: %d slots of %d positions, KV cache %.0f MiB of %.0f MiB allowed",
            loaded.model_id,
            loaded.model.dtype,
            device.type,
            capacity.max_slots,
            capacity.max_model_len,
            capacity.cache_bytes / 2**20,
            capacity.budget_bytes / 2**20,
        )
        runner = build_runner(
            loaded.model,
            probed,
            capacity.max_slots,
            capacity.max_model_len,
            compile_decode=settings.compile,
        )
        engine = Engine(runner, loaded.eos_token_ids, settings.prefill_chunk, time.monotonic)
        thread = EngineThread(
            engine,
            capacity.max_slots,
            settings.max_queue,
            self._metrics.observe_step,
            self._fail,
        )
        thread.start()
        vocab_size = loaded.model.config.get_text_config().vocab_size
        return Served(loaded, capacity, probed.hidden_size, vocab_size, thread)

    def _fail(self, error: Exception) -> None:
        with self._state_lock:
            self._state = State.FAILED
            self.failure = error
        self._on_failed()
