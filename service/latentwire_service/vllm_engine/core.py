"""vLLM's `AsyncLLM` on a thread of its own, and the hidden rows that come back from its workers.

Importing this module imports vLLM, which takes seconds. Nothing here knows queues, callers or text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, cast

import zmq
from pydantic import ValidationError
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from latentwire_service.engine.backend import ComputeDtype
from latentwire_service.engine.errors import EngineFailedError, ModelError
from latentwire_service.vllm_engine.engine import Core
from latentwire_service.vllm_engine.events import Event, NewTokens, RequestFailed
from latentwire_service.vllm_engine.row_ledger import ROWS_ARG
from latentwire_service.vllm_engine.row_wire import decode

logger = logging.getLogger(__name__)

ROW_WORKER = "latentwire_service.vllm_engine.row_worker.RowWorker"
_RPC_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_HEALTH_PERIOD_S = 0.5
_POLL_MS = 200


OnLost = Callable[[Exception], None]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What vLLM knows about the model that it has loaded.

    Attributes:
        hidden_size: width of a hidden row.
        vocab_size: number of token ids.
        dtype: compute dtype.
        max_slots: requests that run together.
        max_model_len: prompt and generated tokens of one request.
        is_quantized: whether it computes with other weights than those in the files.
    """

    hidden_size: int
    vocab_size: int
    dtype: ComputeDtype
    max_slots: int
    max_model_len: int
    is_quantized: bool


class LoadedCore(Core, Protocol):
    """What the backend needs of `VllmCore`."""

    @property
    def facts(self) -> ModelFacts:
        """The loaded model; only after `start`."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether a thread of it runs."""
        ...

    def start(self) -> None:
        """Load the model."""
        ...

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `RowWorker` in every worker process."""
        ...

    def stop(self) -> None:
        """End vLLM's processes and the threads."""
        ...


class MakeCore(Protocol):
    """Makes a core that is not started."""

    def __call__(self, engine_args: Mapping[str, Any], on_lost: OnLost, /) -> LoadedCore:
        """Return it, with the arguments of `VllmCore`."""
        ...


class VllmCore:
    """One loaded vLLM engine. Any thread may call its methods.

    Args:
        engine_args: of `AsyncEngineArgs`.
        on_lost: called once, on the loop's thread, when vLLM's processes are gone.
    """

    def __init__(self, engine_args: Mapping[str, Any], on_lost: OnLost) -> None:
        self._engine_args = engine_args
        self._on_lost = on_lost
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._is_stopping = threading.Event()
        self._folder = tempfile.mkdtemp(prefix="latentwire-")
        self._address = f"ipc://{self._folder}/rows"
        self._loop_thread = threading.Thread(target=self._run_loop, name="vllm", daemon=True)
        self._row_thread = threading.Thread(target=self._read_rows, name="vllm-rows", daemon=True)
        self._llm: AsyncLLM | None = None

    @property
    def llm(self) -> AsyncLLM:
        """The engine; only after `start`."""
        assert self._llm is not None, "used before `start`"
        return self._llm

    @property
    def facts(self) -> ModelFacts:
        """The loaded model; only after `start`."""
        config = self.llm.vllm_config
        model = config.model_config
        return ModelFacts(
            hidden_size=model.get_hidden_size(),
            vocab_size=model.get_vocab_size(),
            dtype=cast("ComputeDtype", str(model.dtype).removeprefix("torch.")),
            max_slots=config.scheduler_config.max_num_seqs,
            max_model_len=model.max_model_len,
            is_quantized=model.quantization is not None,
        )

    @property
    def is_alive(self) -> bool:
        """Whether the loop's thread runs."""
        return self._loop_thread.is_alive()

    def start(self) -> None:
        """Load the model. Blocks for seconds to minutes.

        Raises:
            ModelError: vLLM cannot serve the model with these arguments.
        """
        self._loop_thread.start()
        try:
            self._llm = self._call(self._create(), None)
            senders = self.call_workers("latentwire_send_rows", self._address)
        except Exception as error:
            self.stop()
            raise ModelError(f"vLLM cannot serve the model: {_reason(error)}") from error
        if sum(senders) != 1:
            self.stop()
            raise ModelError(f"vLLM has {sum(senders)} workers with hidden rows, not one")
        self._row_thread.start()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `RowWorker` in every worker process.

        Raises:
            Exception: of any kind; the call failed.
        """
        result: list[Any] = self._call(self.llm.collective_rpc(method, args=args), _RPC_TIMEOUT_S)
        return result

    def submit(
        self,
        request: int,
        prompt: Sequence[int],
        params: Mapping[str, Any],
        max_rows: int,
    ) -> None:
        """Hand a request over; what becomes of it arrives as events.

        Args:
            request: its number, never used before.
            prompt: token ids.
            params: of vLLM's `SamplingParams`.
            max_rows: rows to send at most.
        """
        self._loop.call_soon_threadsafe(self._spawn, request, prompt, params, max_rows)

    def abort(self, request: int) -> None:
        """Give a request up. Harmless when it has ended."""
        # The loop is closed once vLLM is stopped.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel, request)

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for something to happen; return what has happened, in order."""
        try:
            found = [self._events.get(timeout=timeout_s)]
        except Empty:
            return []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def stop(self) -> None:
        """End vLLM's processes and the threads. Blocks for seconds at most."""
        if self._is_stopping.is_set():
            return
        self._is_stopping.set()
        if self._loop_thread.is_alive():
            with contextlib.suppress(Exception):
                self._call(self._shut_down(), _STOP_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(_STOP_TIMEOUT_S)
        if not self._loop_thread.is_alive():
            self._loop.close()
        if self._row_thread.is_alive():
            self._row_thread.join(_STOP_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float | None) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise

    def _run_loop(self) -> None:
        # Inherited by vLLM's processes: Ctrl-C in a terminal reaches all of them, and requests that
        # run may finish.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _create(self) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._engine_args))

    async def _shut_down(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        if self._llm is not None:
            self._llm.shutdown()

    async def _watch(self) -> None:
        """Notice that vLLM's processes are gone, also while no request runs."""
        # vLLM has no event for it.
        while not self.llm.errored:  # noqa: ASYNC110
            await asyncio.sleep(_HEALTH_PERIOD_S)
        if not self._is_stopping.is_set():
            self._on_lost(EngineFailedError("vLLM's engine process ended"))
            self._events.put(None)

    def _spawn(
        self, request: int, prompt: Sequence[int], params: Mapping[str, Any], max_rows: int
    ) -> None:
        task = self._loop.create_task(self._generate(request, prompt, params, max_rows))
        self._tasks[request] = task
        task.add_done_callback(lambda _: self._tasks.pop(request, None))

    def _cancel(self, request: int) -> None:
        task = self._tasks.get(request)
        if task is not None:
            task.cancel()

    async def _generate(
        self, request: int, prompt: Sequence[int], params: Mapping[str, Any], max_rows: int
    ) -> None:
        try:
            sampling = SamplingParams(
                **params,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={ROWS_ARG: [request, max_rows]},
                skip_clone=True,
            )
            outputs = self.llm.generate(
                TokensPrompt(prompt_token_ids=list(prompt)), sampling, f"latentwire-{request}"
            )
            async for output in outputs:
                plan = output.outputs[0]
                self._events.put(NewTokens(request, plan.token_ids, plan.finish_reason))
        except EngineDeadError:
            # `_watch` reports it.
            pass
        except Exception as error:
            # The boundary of one request: vLLM refuses it, or fails on it alone.
            self._events.put(RequestFailed(request, _reason(error)))

    def _read_rows(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.bind(self._address)
            while not self._is_stopping.is_set():
                if socket.poll(_POLL_MS):
                    header, data = socket.recv_multipart(copy=False)
                    self._events.put(decode(header.bytes, data.buffer))
                    # The worker is connected: nobody needs the path, and a service that is killed
                    # leaves no folder.
                    shutil.rmtree(self._folder, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValidationError):
        # Its own text ends with the values of all other fields and a link.
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(
            ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            for fault in faults
        )
    text = " ".join(text.split())
    return text or type(error).__name__
