"""latentwire's engine over vLLM, as the service runs it, without HTTP."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.ours import run_engine
from benchmarks.workload import Sample, Workload
from latentwire_service.engine.hf.loader import ModelFiles
from latentwire_service.vllm_engine.core import ROW_WORKER, VllmCore
from latentwire_service.vllm_engine.engine import VllmEngine
from latentwire_service.vllm_engine.sampling import VllmSampling


class WithRows:
    """`AsyncLLM` with our worker extension, stepped in this thread.

    Args:
        engine_args: of vLLM's engine.
        files: of the model.
    """

    def __init__(self, engine_args: dict[str, Any], files: ModelFiles) -> None:
        self._core = VllmCore({**engine_args, "worker_extension_cls": ROW_WORKER}, _end)
        self._core.start()
        model = self._core.llm.vllm_config.model_config
        self._engine = VllmEngine(
            self._core,
            VllmSampling({}, frozenset()).params_of,
            files.tokenizer,
            frozenset(),
            model.get_hidden_size(),
            engine_args["max_num_seqs"],
            time.monotonic,
        )

    def run(self, workload: Workload) -> Sample:
        """Generate for all prompts, with at most `workload.concurrency` in flight."""
        return run_engine(self._engine, workload)

    def close(self) -> None:
        """End vLLM's processes."""
        self._core.stop()


def _end(error: Exception) -> None:
    """End the worker: its thread would wait forever for vLLM's processes, which are gone."""
    print(error, file=sys.stderr, flush=True)
    os._exit(1)
