"""The service's life: load the model in the background, serve, drain, or fail.

This is the seam between asyncio and the engine's thread. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentwire.protocol import DtypeName, InfoResponse, Limits
from latentwire_service.deadline import Deadline
from latentwire_service.engine.errors import EngineUnavailableError, ModelError
from latentwire_service.engine.request import Completion, Request, Step
from latentwire_service.request_builder import Ask, build_request, prompt_chars
from latentwire_service.settings import Settings
from latentwire_service.step_channel import StepChannel
from latentwire_service.telemetry.metrics import Metrics
from latentwire_service.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from latentwire_service.engine_factory import Served

logger = logging.getLogger(__name__)

_ABORT_PATIENCE_S = 5.0
# Prompts up to this are tokenized on the event loop: 0.4 ms of SmolLM2's tokenizer, less than a
# thread costs that sleeps (0.5 ms).
_SHORT_PROMPT_CHARS = 2048
_DTYPE_NAMES: Mapping[str, DtypeName] = {
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
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


class Serving:
    """One model, served.

    Args:
        settings: of the whole service.
        metrics: where steps and completions are counted.
        version: shown in `/info`.
        on_failed: called, on any thread, when nothing can be served any more.
        on_loaded: called, on the loader's thread, before the first request is taken.
        tracing: told about completions; None: nobody traces.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        version: str,
        on_failed: Callable[[], None],
        on_loaded: Callable[[], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._settings = settings
        self._metrics = metrics
        self._version = version
        self._on_failed = on_failed
        self._on_loaded = on_loaded
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

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, finish those taken. Blocks until they are finished.

        Args:
            timeout_s: after it, those that still run are failed; None: they may take their time.

        Returns:
            whether all finished by themselves.
        """
        with self._state_lock:
            if self._state in (State.LOADING, State.READY):
                self._state = State.DRAINING
        if self._served is None or self._served.thread.stop(timeout_s):
            return True
        self._served.thread.abort(EngineUnavailableError("the service ended before the request"))
        # One step more; a step that hangs is not waited for.
        self._served.thread.stop(_ABORT_PATIENCE_S)
        return False

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
            dtype=_DTYPE_NAMES[str(model.dtype)],
            device=model.device.type,
            limits=Limits(
                max_slots=served.capacity.max_slots,
                max_model_len=served.capacity.max_model_len,
                max_queue=self._settings.max_queue,
                max_body_bytes=self._settings.max_body_bytes,
                max_new_tokens=self._settings.max_new_tokens_limit,
                request_timeout_s=self._settings.request_timeout,
            ),
            version=self._version,
            compressors=[],
        )

    def observe_load(self) -> None:
        """Bring the load gauges up to date."""
        if self._served is not None:
            load = self._served.thread.load
            max_slots = self._served.capacity.max_slots
            self._metrics.observe_load(load.num_running, load.num_waiting, max_slots)

    async def plan(self, ask: Ask) -> Plan:
        """Run one request to its end; when the awaiting task is cancelled, so is the request.

        Raises:
            EngineError: whatever the engine has to say against it.
        """
        served = self._require(State.READY)
        async with Deadline(ask.timeout_s).enforced():
            request = await self._build(served, ask, None)
            served.thread.submit(request)
            try:
                completion = await asyncio.wrap_future(request.future)
            except asyncio.CancelledError:
                served.thread.cancel(request)
                raise
        return self._finished(request, completion)

    async def stream(self, ask: Ask) -> AsyncIterator[list[Step] | Plan]:
        """Run one request; yield its steps as they come, several where the reader is behind.

        The last item is the plan. Closing the iterator early cancels the request.

        Raises:
            EngineError: as `plan`, before the first item or after any.
        """
        served = self._require(State.READY)
        channel = StepChannel()
        deadline = Deadline(ask.timeout_s)
        async with deadline.enforced():
            request = await self._build(served, ask, channel.put)
        request.future.add_done_callback(lambda _: channel.ring())
        served.thread.submit(request)
        try:
            while True:
                # Only the wait for the engine is timed, not the reader's own pace.
                async with deadline.enforced():
                    steps = await channel.read(request.future)
                if not steps:
                    break
                yield steps
        finally:
            served.thread.cancel(request)
        yield self._finished(request, request.future.result())

    async def _build(
        self, served: Served, ask: Ask, on_step: Callable[[Step], None] | None
    ) -> Request:
        limit = self._settings.max_new_tokens_limit
        if prompt_chars(ask.body) <= _SHORT_PROMPT_CHARS:
            return build_request(served, ask, limit, on_step)
        return await asyncio.to_thread(build_request, served, ask, limit, on_step)

    def _finished(self, request: Request, completion: Completion) -> Plan:
        self._metrics.observe_completion(completion)
        if self._tracing is not None:
            self._tracing.note_completion(completion, self._require().loaded.model_id)
        return Plan(request.request_id, request.params.seed, completion)

    def _require(self, *states: State) -> Served:
        if self._served is None or (states and self._state not in states):
            raise EngineUnavailableError(f"the service is {self._state.value}")
        return self._served

    def _load(self) -> None:
        started = time.monotonic()
        try:
            # Importing torch takes seconds: here, while `/health` answers already.
            from latentwire_service.engine_factory import load_served

            served = load_served(self._settings, self._metrics.observe_step, self._fail)
            if self._on_loaded is not None:
                self._on_loaded()
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

    def _fail(self, error: Exception) -> None:
        with self._state_lock:
            self._state = State.FAILED
            self.failure = error
        self._on_failed()
