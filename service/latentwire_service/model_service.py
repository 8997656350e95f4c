"""The service's life: load the model in the background, serve, drain, or fail.

This is the seam between asyncio and a backend's threads. Nothing here knows HTTP, how a model is
loaded, or what is measured: the backend comes from a factory, and completions are reported.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from latentwire.compressors import Compressor
from latentwire_service.compression.catalog import CompressorCatalog
from latentwire_service.compression.pool import (
    Compressed,
    CompressionPool,
    CompressionPools,
    compress,
)
from latentwire_service.deadline import Deadline
from latentwire_service.engine.backend import (
    Backend,
    BackendFactory,
    BackendInfo,
    Completion,
    GenerationSpec,
    Occupancy,
    Step,
    StepStats,
    check_latent,
)
from latentwire_service.engine.errors import EngineUnavailableError, ModelError
from latentwire_service.prompt_input import takes_long
from latentwire_service.request_builder import Submission, build_spec
from latentwire_service.step_channel import StepChannel

logger = logging.getLogger(__name__)

_ABORT_PATIENCE_S = 5.0


class State(enum.Enum):
    """Where the service is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Plan:
    """A finished request.

    Attributes:
        plan_id: id of the answer.
        seed: the seed that was used.
        completion: the result.
        day: the date that the chat template wrote into the prompt; None when it wrote none.
        compressed: the compressed latent; None when the request has no compressor.
    """

    plan_id: str
    seed: int
    completion: Completion
    day: date | None = None
    compressed: Compressed | None = None


@dataclass(frozen=True, slots=True)
class Observers:
    """Callables that a `ModelService` reports to.

    Attributes:
        on_step: called on the engine's thread after each of its steps.
        on_completion: called on the event loop, in the task of the request that finished.
        on_loaded: called on the loader's thread before the first request is accepted.
        on_failed: called on any thread when nothing can be served any more.
    """

    on_step: Callable[[StepStats], None] = lambda _stats: None
    on_completion: Callable[[Plan, BackendInfo], None] = lambda _plan, _backend: None
    on_loaded: Callable[[], None] = lambda: None
    on_failed: Callable[[], None] = lambda: None


class ModelService:
    """Serves one model.

    Args:
        create_backend: makes the engine; called on the loader's thread.
        observers: told what happens.
        max_new_tokens_limit: largest `max_new_tokens` allowed; None allows what fits a slot.
        step_timeout_s: age in seconds from which a step counts as hung.
        compressors: those that requests may name; None: the ones that need no directory.
    """

    def __init__(
        self,
        create_backend: BackendFactory,
        observers: Observers,
        max_new_tokens_limit: int | None = None,
        step_timeout_s: float = math.inf,
        compressors: CompressorCatalog | None = None,
    ) -> None:
        self._create_backend = create_backend
        self._observers = observers
        self._max_new_tokens_limit = max_new_tokens_limit
        self._step_timeout_s = step_timeout_s
        self.compressors = compressors or CompressorCatalog()
        self._compressions = CompressionPools()
        self._is_hang_logged = False
        self._started_s = time.monotonic()
        self._backend: Backend | None = None
        self._state = State.LOADING
        self._state_lock = threading.Lock()
        # A daemon, like the engine's thread: hours of loading must not keep a dying process alive.
        self._loader = threading.Thread(target=self._load, name="loader", daemon=True)
        self.failure: Exception | None = None

    @property
    def uptime_s(self) -> float:
        """Seconds since the service was made, right before it began to load the model."""
        return time.monotonic() - self._started_s

    @property
    def state(self) -> State:
        """Where the service is in its life."""
        return self._state

    @property
    def info(self) -> BackendInfo:
        """Facts about the model.

        Raises:
            EngineUnavailableError: the model is not loaded.
        """
        return self._require().info

    @property
    def occupancy(self) -> Occupancy | None:
        """How busy the engine is; None while the model is not loaded."""
        return None if self._backend is None else self._backend.occupancy

    @property
    def is_working(self) -> bool:
        """Whether a thread is still loading the model, computing or compressing."""
        is_computing = self._backend is not None and self._backend.is_alive
        return is_computing or self._loader.is_alive() or self._compressions.is_busy

    def check_progress(self) -> None:
        """Do nothing unless the engine hangs.

        Raises:
            EngineUnavailableError: the current step has taken longer than the limit.
        """
        age_s = 0.0 if self._backend is None else self._backend.step_age_s
        if age_s <= self._step_timeout_s:
            self._is_hang_logged = False
            return
        message = f"the engine hangs: its step has taken more than {self._step_timeout_s:g} s"
        if not self._is_hang_logged:
            self._is_hang_logged = True
            logger.error("%s", message)
        raise EngineUnavailableError(message)

    def start_loading(self) -> None:
        """Load the model on a thread of its own, once; `/health` answers meanwhile."""
        if self._loader.ident is None:
            self._loader.start()

    def check_loaded(self) -> None:
        """Block until loading has ended.

        Raises:
            ValueError: the model cannot be served.
            RuntimeError: loading failed for another reason.
        """
        self._loader.join()
        if isinstance(self.failure, ModelError):
            raise ValueError(" ".join(str(self.failure).split())) from self.failure
        if self.failure is not None:
            raise RuntimeError("loading the model failed") from self.failure

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and finish the accepted ones. Blocks until they are finished.

        Args:
            timeout_s: requests that still run after it are failed; None waits without limit.

        Returns:
            whether all of them finished in time.
        """
        with self._state_lock:
            if self._state in (State.LOADING, State.READY):
                self._state = State.DRAINING
        if self._backend is None or self._backend.drain(timeout_s):
            return True
        self._backend.abort(
            EngineUnavailableError("the service stopped before the request finished")
        )
        # One more step carries the abort out; a step that hangs is not waited for.
        self._backend.drain(_ABORT_PATIENCE_S)
        return False

    async def plan(self, submission: Submission) -> Plan:
        """Run one request to its end; when the awaiting task is cancelled, so is the request.

        Raises:
            EngineError: the request is refused, fails or expires.
        """
        backend = self._require(State.READY)
        async with Deadline(submission.timeout_s).enforced():
            compressor = await self._compressor(backend, submission)
            spec = await self._build(backend, submission)
            handle = backend.submit(spec)
            try:
                completion = await asyncio.wrap_future(handle.future)
            except asyncio.CancelledError:
                handle.cancel()
                raise
            plan = self._finished(spec, completion, backend.info)
            return await self._compressed(plan, compressor)

    async def stream(self, submission: Submission) -> AsyncGenerator[list[Step] | Plan, None]:
        """Run one request; yield its steps as they come, several when the reader is behind.

        The last item is the plan. Closing the iterator early cancels the request.

        Raises:
            EngineError: as `plan`, before the first item or after any.
        """
        backend = self._require(State.READY)
        channel = StepChannel()
        deadline = Deadline(submission.timeout_s)
        async with deadline.enforced():
            compressor = await self._compressor(backend, submission)
            spec = await self._build(backend, submission)
        handle = backend.submit(spec, channel.put)
        handle.future.add_done_callback(lambda _: channel.wake())
        try:
            while True:
                # Only the wait for the engine is timed, not the reader's own pace.
                async with deadline.enforced():
                    steps = await channel.read(handle.future)
                if not steps:
                    break
                yield steps
        finally:
            handle.cancel()
        plan = self._finished(spec, handle.future.result(), backend.info)
        async with deadline.enforced():
            plan = await self._compressed(plan, compressor)
        yield plan

    async def _compressor(self, backend: Backend, submission: Submission) -> Compressor | None:
        """Return the compressor that a request names, before anything is generated for it."""
        if submission.compressor is None:
            return None
        name, k, width = submission.compressor, submission.k, backend.info.hidden_size
        pool = self._pool(name)
        pool.check_room()
        return await pool.run(partial(self.compressors.get, name, k, width))

    async def _compressed(self, plan: Plan, compressor: Compressor | None) -> Plan:
        if compressor is None:
            return plan
        work = partial(compress, compressor, plan.completion.hidden_state)
        return replace(plan, compressed=await self._pool(compressor.name).run(work))

    def _pool(self, name: str) -> CompressionPool:
        return self._compressions.of(self.compressors.package_of(name))

    async def _build(self, backend: Backend, submission: Submission) -> GenerationSpec:
        limit = self._max_new_tokens_limit
        if takes_long(submission.body):
            return await asyncio.to_thread(build_spec, backend, submission, limit)
        return build_spec(backend, submission, limit)

    def _finished(self, spec: GenerationSpec, completion: Completion, backend: BackendInfo) -> Plan:
        """Check the latent, whichever backend made it, and report the completion.

        Raises:
            LatentInvalidError: the hidden rows break the latent's invariant.
        """
        check_latent(
            completion.hidden_state,
            num_rows=min(spec.max_rows, completion.num_steps),
            hidden_size=backend.hidden_size,
        )
        plan = Plan(spec.plan_id, spec.sampling.seed, completion, spec.prompt.day)
        self._observers.on_completion(plan, backend)
        return plan

    def _require(self, *states: State) -> Backend:
        if self._backend is None or (states and self._state not in states):
            raise EngineUnavailableError(f"the service is {self._state.value}")
        return self._backend

    def _load(self) -> None:
        started = time.monotonic()
        try:
            backend = self._create_backend(self._observers.on_step, self._fail)
            backend.load()
            self._observers.on_loaded()
        except ModelError as error:
            logger.error("cannot serve the model: %s", " ".join(str(error).split()))
            logger.debug("the cause", exc_info=error.__cause__)
            self._fail(error)
        except Exception as error:
            # The boundary of the loader's thread: any other error is a failure to start, too.
            logger.exception("loading failed")
            self._fail(error)
        else:
            with self._state_lock:
                self._backend = backend
                if self._state is State.LOADING:
                    self._state = State.READY
            logger.info("ready after %.1f s", time.monotonic() - started)

    def _fail(self, error: Exception) -> None:
        with self._state_lock:
            self._state = State.FAILED
            self.failure = error
        self._observers.on_failed()
