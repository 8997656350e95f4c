"""vLLM as it is used for text: all at once, and streamed. No code of latentwire runs in it."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from benchmarks.workload import TOP_P, Sample, Workload


def _params(workload: Workload, **options: Any) -> SamplingParams:
    return SamplingParams(
        max_tokens=workload.new_tokens, temperature=1.0, top_p=TOP_P, ignore_eos=True, **options
    )


class AllAtOnce:
    """`LLM.generate`: text at the end.

    Args:
        engine_args: of vLLM's engine.
    """

    def __init__(self, engine_args: dict[str, Any]) -> None:
        self._llm = LLM(**engine_args)

    def run(self, workload: Workload) -> Sample:
        """Generate for all prompts at once."""
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in workload.prompts]
        started = time.perf_counter()
        self._llm.generate(prompts, _params(workload), use_tqdm=False)
        return Sample(workload.num_tokens, time.perf_counter() - started)

    def close(self) -> None:
        """Do nothing: vLLM's processes end with this one."""


class Streamed:
    """`AsyncLLM.generate`: text as it is made, as a server does.

    Without seeds: on a CPU, vLLM 0.32 ends when the prompt of a seeded request takes several steps.

    Args:
        engine_args: of vLLM's engine.
    """

    def __init__(self, engine_args: dict[str, Any]) -> None:
        self._num_sent = 0
        self._loop = asyncio.new_event_loop()
        self._llm = self._loop.run_until_complete(self._start(engine_args))

    def run(self, workload: Workload) -> Sample:
        """Generate for all prompts at once."""
        return self._loop.run_until_complete(self._run(workload))

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()

    async def _start(self, engine_args: dict[str, Any]) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args))

    async def _run(self, workload: Workload) -> Sample:
        started = time.perf_counter()
        spans = await asyncio.gather(
            *(self._generate(prompt, workload) for prompt in workload.prompts)
        )
        seconds = time.perf_counter() - started
        return Sample(
            workload.num_tokens,
            seconds,
            ttft_s=statistics.median(first - sent for sent, first, _ in spans),
            tpot_s=statistics.median(
                (last - first) / max(workload.new_tokens - 1, 1) for _, first, last in spans
            ),
        )

    async def _generate(self, prompt: list[int], workload: Workload) -> tuple[float, float, float]:
        """Return the times of submission, first and last token."""
        self._num_sent += 1
        sent, first, num_tokens = time.perf_counter(), None, 0
        outputs = self._llm.generate(
            TokensPrompt(prompt_token_ids=prompt),
            _params(workload, output_kind=RequestOutputKind.DELTA),
            f"text-{self._num_sent}",
        )
        async for output in outputs:
            first = first or time.perf_counter()
            num_tokens += len(output.outputs[0].token_ids)
        assert num_tokens == workload.new_tokens
        assert first is not None
        return sent, first, time.perf_counter()
