"""The backends of the tests behind one switch, and what a test does to them.

A module or a test runs over each that it names: ``@pytest.mark.backends("fake", "local", "vllm")``.
The last one counts only where vLLM is installed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from latentwire_service.engine.backend import (
    Backend,
    BackendFactory,
    Completion,
    GenerationHandle,
    GenerationSpec,
    OnStep,
    StepStats,
)
from latentwire_service.engine.errors import EngineError
from latentwire_service.engine.prompt import Conversation, Prompt
from latentwire_service.engine.seams.bridge import Bridges
from latentwire_service.settings import Settings
from support.fake_backend import ByteTokenizer, FakeBackend, Rows


@dataclass(frozen=True)
class Faults:
    """What a backend does wrong or late.

    Attributes:
        before_load: called before the model is loaded; may block or raise.
        before_decode: called before each step that continues a request; may block or raise.
        has_nan_rows: every hidden row but a request's first is NaN.
        is_tokenizer_broken: whether the tokenizer fails to decode.
    """

    before_load: Callable[[], None] = lambda: None
    before_decode: Callable[[], None] = lambda: None
    has_nan_rows: bool = False
    is_tokenizer_broken: Callable[[], bool] = lambda: False


NO_FAULTS = Faults()


class MakeFactory(Protocol):
    def __call__(self, settings: Settings, faults: Faults) -> BackendFactory: ...


class FaultyTokenizer:
    """A tokenizer that raises what a real one may."""

    def __init__(self, tokenizer: Any, is_broken: Callable[[], bool]) -> None:
        self._tokenizer = tokenizer
        self._is_broken = is_broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_broken():
            raise OverflowError("out of range integral type conversion attempted")
        return self._tokenizer.decode(*args, **kwargs)


def _fake(settings: Settings, faults: Faults) -> BackendFactory:
    return partial(
        FakeBackend,
        settings,
        before_decode=faults.before_decode,
        change_rows=_nan_after_first if faults.has_nan_rows else _same,
        tokenizer=FaultyTokenizer(ByteTokenizer(), faults.is_tokenizer_broken),
    )


def _same(rows: Rows) -> Rows:
    return rows


def _nan_after_first(rows: Rows) -> Rows:
    rows[1:] = np.nan
    return rows


def _local(settings: Settings, faults: Faults) -> BackendFactory:
    # Imported here: tests over the fake backend need no torch.
    from latentwire_service.local_backend import LocalBackend
    from support.engine.gated_runner import GatedRunner

    return partial(
        LocalBackend,
        settings,
        wrap_runner=partial(
            GatedRunner, before=faults.before_decode, has_nan_rows=faults.has_nan_rows
        ),
        wrap_tokenizer=partial(FaultyTokenizer, is_broken=faults.is_tokenizer_broken),
    )


def _vllm(settings: Settings, faults: Faults) -> BackendFactory:
    from latentwire_service.vllm_engine.backend import VllmBackend
    from support.engine.vllm_cores import current_vllm

    return partial(
        VllmBackend,
        settings.model_copy(update={"engine": "vllm"}),
        make_core=current_vllm().make_core(faults),
        wrap_tokenizer=partial(FaultyTokenizer, is_broken=faults.is_tokenizer_broken),
    )


BACKENDS: dict[str, MakeFactory] = {"fake": _fake, "local": _local, "vllm": _vllm}


@dataclass
class Watch:
    """What a service has done to its backend.

    Attributes:
        submitted: released with each accepted request.
        cancelled: set when an unfinished request is cancelled.
        draining: set when the backend is told to drain.
        aborted: set when the backend has been told to fail what it has accepted.
        encoding_threads: of each tokenized prompt.
    """

    submitted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Event = field(default_factory=threading.Event)
    draining: threading.Event = field(default_factory=threading.Event)
    aborted: threading.Event = field(default_factory=threading.Event)
    encoding_threads: list[int] = field(default_factory=list)


def watched(create_backend: BackendFactory, faults: Faults, watch: Watch) -> BackendFactory:
    """Tell `watch` what happens at the seam."""

    def create(
        on_step: Callable[[StepStats], None], on_failure: Callable[[Exception], None]
    ) -> Backend:
        return _WatchedBackend(create_backend(on_step, on_failure), faults, watch)

    return create


class _WatchedBackend:
    def __init__(self, backend: Backend, faults: Faults, watch: Watch) -> None:
        self._backend = backend
        self._faults = faults
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def load(self) -> None:
        self._faults.before_load()
        self._backend.load()

    @property
    def bridges(self) -> Bridges:
        return self._backend.bridges

    def encode_prompt(self, conversation: Conversation) -> Prompt:
        self._watch.encoding_threads.append(threading.get_ident())
        return self._backend.encode_prompt(conversation)

    def encode_plan(self, text: str) -> Prompt:
        return self._backend.encode_plan(text)

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> GenerationHandle:
        handle = self._backend.submit(spec, on_step)
        self._watch.submitted.release()
        return _WatchedHandle(handle, self._watch)

    def drain(self, timeout_s: float | None) -> bool:
        self._watch.draining.set()
        return self._backend.drain(timeout_s)

    def abort(self, error: EngineError) -> None:
        self._backend.abort(error)
        self._watch.aborted.set()


@dataclass(frozen=True)
class _WatchedHandle:
    _handle: GenerationHandle
    _watch: Watch

    @property
    def future(self) -> Future[Completion]:
        return self._handle.future

    def cancel(self) -> None:
        is_finished = self.future.done() and not self.future.cancelled()
        self._handle.cancel()
        if not is_finished:
            self._watch.cancelled.set()
