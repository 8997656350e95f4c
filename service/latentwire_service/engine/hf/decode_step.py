"""How a decode step is run when it is compiled: traced, and replayed as CUDA graphs on a GPU.

The graphs are recorded here and not by `torch.compile(mode="reduce-overhead")`, because torch keeps
its recordings per thread: the model is warmed up on one thread and served on another.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from latentwire_service.engine.hf.kv_cache import CacheView
from latentwire_service.engine.runner import StepEmbeddings, StepOutput

# A step over the `[B, 1]` int64 tokens of a view; the second kind reads embeddings, too.
TokenStep = Callable[[torch.Tensor, CacheView], StepOutput]
MixedStep = Callable[[torch.Tensor, CacheView, StepEmbeddings], StepOutput]
# Records what a function does on the device; returns a function that does it again.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]

# Before a recording, torch compiles and tunes kernels, and libraries take their workspaces.
_RUNS_BEFORE_RECORDING = 3
# transformers wraps a decoder's `forward` in this decorator, whose code torch 2.6 to 2.8 cannot
# trace: it looks a name up in a code object.
_UNTRACEABLE = "merge_with_config_defaults"


def make_traceable(model: Any) -> None:
    """Remove a decorator from the decoders inside a model, because older torch cannot trace it.

    The decorator fills in arguments from the config; the engine passes the one that matters,
    `use_cache`, itself. It is removed under every version, so that all of them run the same code.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            forward: Any = type(module).forward
            if forward.__code__.co_qualname.startswith(_UNTRACEABLE):
                module.forward = types.MethodType(forward.__wrapped__, module)


class Step(Protocol):
    """A decode step, with embeddings in place of some tokens or without."""

    def __call__(
        self, token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings | None = None, /
    ) -> StepOutput:
        """Run the step over `[B, 1]` int64 tokens."""
        ...


def either(step: TokenStep, mixed_step: MixedStep) -> Step:
    """Return a step that is the first one without embeddings, and the second one with some."""

    def run(
        token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings | None = None, /
    ) -> StepOutput:
        if embeddings is None:
            return step(token_ids, view)
        return mixed_step(token_ids, view, embeddings)

    return run


def compiled(step: TokenStep, mixed_step: MixedStep, device: torch.device) -> Step:
    """Compile steps in one graph each without a break, and record them where the device is a GPU.

    Rows and lengths become dynamic once they vary, so that few shapes are compiled, however many
    are recorded. The CUDA branch is reached on a GPU only.
    """
    traced = either(
        torch.compile(step, fullgraph=True),
        torch.compile(mixed_step, fullgraph=True),
    )
    return RecordedStep(traced, CudaGraphRecorder(device)) if device.type == "cuda" else traced


@dataclass(frozen=True, slots=True)
class _Recording:
    """One shape: tensors that the recorded work reads and writes, and a way to run it again."""

    token_ids: torch.Tensor
    view: CacheView
    embeddings: StepEmbeddings | None
    output: StepOutput
    replay: Callable[[], None]


class RecordedStep:
    """A step that is recorded once per shape and replayed from then on.

    Each call overwrites the output of the last call with as many rows.

    Args:
        step: reads and writes nothing on the host that differs from call to call.
        record: how to record; tests replace it.
    """

    def __init__(self, step: Step, record: Recorder) -> None:
        self._step = step
        self._record = record
        self._recordings: dict[tuple[int, int, bool], _Recording] = {}
        # Outside the recordings' own memory: those share it, and keep nothing in it.
        self._outputs: dict[int, StepOutput] = {}

    def __call__(
        self, token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings | None = None, /
    ) -> StepOutput:
        """Run the step.

        Args:
            token_ids: `[B, 1]` int64.
            view: dense, of the slots ``0..B-1``.
            embeddings: of B rows; None when all inputs are tokens.
        """
        assert view.is_dense
        key = (len(token_ids), view.kv_length, embeddings is not None)
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._recorded(token_ids, view, embeddings)
            self._recordings[key] = recording
        recording.token_ids.copy_(token_ids)
        recording.view.write_positions.copy_(view.write_positions)
        recording.view.query_positions.copy_(view.query_positions)
        if embeddings is not None and recording.embeddings is not None:
            recording.embeddings.rows.copy_(embeddings.rows)
            recording.embeddings.is_used.copy_(embeddings.is_used)
        recording.replay()
        return recording.output

    def _recorded(
        self, token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings | None
    ) -> _Recording:
        token_ids = token_ids.clone()
        view = CacheView(
            slots=view.slots,
            is_dense=True,
            write_positions=view.write_positions.clone(),
            query_positions=view.query_positions.clone(),
            kv_length=view.kv_length,
        )
        if embeddings is not None:
            embeddings = StepEmbeddings(embeddings.rows.clone(), embeddings.is_used.clone())
        first = self._step(token_ids, view, embeddings)
        output = self._outputs.setdefault(
            len(token_ids),
            StepOutput(torch.empty_like(first.logits), torch.empty_like(first.hidden)),
        )

        def run() -> None:
            step_output = self._step(token_ids, view, embeddings)
            output.logits.copy_(step_output.logits)
            output.hidden.copy_(step_output.hidden)

        return _Recording(token_ids, view, embeddings, output, self._record(run))


class CudaGraphRecorder:
    """Records work as a CUDA graph. Reached on a GPU only.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run the work some times, then record it; return the replay."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_RUNS_BEFORE_RECORDING):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of a service may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        replay: Callable[[], None] = graph.replay
        return replay
