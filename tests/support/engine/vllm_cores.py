"""One vLLM for all services of a test run: a start takes half a minute and more.

Each service has a core of its own, as far as it can tell: its requests, its number of slots, its
limit of positions, and its faults.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from latentwire_service.vllm_engine.core import ROW_WORKER, MakeCore, ModelFacts, VllmCore
from latentwire_service.vllm_engine.events import Event, NewTokens, RequestFailed
from latentwire_service.vllm_engine.row_wire import RowBatch
from support.backends import Faults
from support.tiny_shape import MAX_MODEL_LEN

MAX_SLOTS = 8
# Room for all slots: 3 layers with keys and values of 2 heads with 32 float32 values.
_CACHE_BYTES = MAX_SLOTS * MAX_MODEL_LEN * 3 * 2 * 2 * 32 * 4
_POLL_S = 0.1


def _weights_of(model: Path) -> str:
    return sha256((model / "model.safetensors").read_bytes()).hexdigest()


class SharedVllm:
    """vLLM with one tiny model, for services with models of the same weights.

    Args:
        model: its directory.
    """

    def __init__(self, model: Path) -> None:
        self.weights = _weights_of(model)
        self.core = VllmCore(
            {
                "model": str(model),
                "skip_tokenizer_init": True,
                "dtype": "float32",
                "max_model_len": MAX_MODEL_LEN,
                "max_num_seqs": MAX_SLOTS,
                "kv_cache_memory_bytes": _CACHE_BYTES,
                "block_size": 32,
                "enforce_eager": True,
                "worker_extension_cls": ROW_WORKER,
            },
            self._lose,
        )
        self._numbers = itertools.count()
        self._owners: dict[int, tuple[ServiceCore, int]] = {}
        self._is_open = threading.Event()
        self._pump = threading.Thread(target=self._hand_out, name="vllm-tests", daemon=True)
        self._failure: Exception | None = None

    def start(self) -> None:
        self.core.start()
        self._is_open.set()
        self._pump.start()

    def close(self) -> None:
        if self._is_open.is_set():
            self._is_open.clear()
            self._pump.join()
        self.core.stop()

    def make_core(self, faults: Faults) -> MakeCore:
        """Return what makes the core of one service."""
        return lambda engine_args, _on_lost: ServiceCore(self, engine_args, faults)

    def adopt(self, owner: ServiceCore, request: int) -> int:
        number = next(self._numbers)
        self._owners[number] = (owner, request)
        return number

    def release(self, number: int) -> None:
        self._owners.pop(number, None)

    def _lose(self, error: Exception) -> None:
        self._failure = error

    def _hand_out(self) -> None:
        while self._is_open.is_set():
            assert self._failure is None, self._failure
            for event in self.core.events(_POLL_S):
                for owner, part in self._split(event):
                    owner.put(part)

    def _split(self, event: Event) -> Iterator[tuple[ServiceCore, Event]]:
        if isinstance(event, RowBatch):
            for place, number in enumerate(event.requests):
                if number in self._owners:
                    owner, request = self._owners[number]
                    rows = event.rows[place : place + 1]
                    yield owner, RowBatch([request], [event.indices[place]], rows)
        elif isinstance(event, NewTokens | RequestFailed) and event.request in self._owners:
            owner, request = self._owners[event.request]
            yield owner, replace(event, request=request)


@dataclass
class ServiceCore:
    """The core of one service: a `LoadedCore`."""

    shared: SharedVllm
    engine_args: Mapping[str, Any]
    faults: Faults
    is_alive: bool = False
    _numbers: dict[int, int] = field(default_factory=dict)
    _events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    _started: set[int] = field(default_factory=set)

    @property
    def facts(self) -> ModelFacts:
        return replace(
            self.shared.core.facts,
            max_slots=self.engine_args["max_num_seqs"],
            max_model_len=self.engine_args["max_model_len"],
        )

    def start(self) -> None:
        assert _weights_of(Path(self.engine_args["model"])) == self.shared.weights
        self.is_alive = True

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        return self.shared.core.call_workers(method, *args)

    def submit(
        self, request: int, prompt: Sequence[int], params: Mapping[str, Any], max_rows: int
    ) -> None:
        number = self._numbers[request] = self.shared.adopt(self, request)
        self.shared.core.submit(number, prompt, params, max_rows)

    def abort(self, request: int) -> None:
        number = self._numbers[request]
        self.shared.release(number)
        self.shared.core.abort(number)

    def put(self, event: Event) -> None:
        """Queue an event, tokens one at a time: each of them is a step."""
        if isinstance(event, NewTokens) and event.token_ids:
            *others, last = event.token_ids
            for token_id in others:
                self._events.put(NewTokens(event.request, [token_id]))
            event = replace(event, token_ids=[last])
        self._events.put(event)

    def events(self, timeout_s: float) -> list[Event]:
        """Return one event at most, so that what comes before a held step is delivered."""
        try:
            event = self._events.get(timeout=timeout_s)
        except Empty:
            return []
        if isinstance(event, NewTokens) and event.request >= 0:
            if event.request in self._started:
                self.faults.before_decode()
            self._started.add(event.request)
        if isinstance(event, RowBatch) and self.faults.has_nan_rows:
            event = self._spoil(event)
        return [event]

    def _spoil(self, batch: RowBatch) -> RowBatch:
        """Spoil all rows but a request's first. The check at the start has a negative number."""
        if batch.requests[0] < 0 or batch.indices[0] == 0:
            return batch
        return replace(batch, rows=np.full_like(batch.rows, np.nan))

    def stop(self) -> None:
        for request in self._numbers:
            self.abort(request)
        self.is_alive = False


_current: list[SharedVllm] = []


@contextmanager
def shared_vllm(model: Path) -> Iterator[None]:
    """Start vLLM; until the end, services of this process use it."""
    vllm = SharedVllm(model)
    try:
        vllm.start()
        _current.append(vllm)
        yield
    finally:
        _current.clear()
        vllm.close()


def current_vllm() -> SharedVllm:
    """The vLLM that runs; the fixture `backend` starts it."""
    (vllm,) = _current
    return vllm
