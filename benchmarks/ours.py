"""latentwire as a contender: the engine in this process, and the service over HTTP."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from benchmarks.workload import TOP_P, Sample, Workload
from latentwire import Client, PlanLatent
from latentwire_service.engine.backend import Completion, GenerationSpec
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.cpu.cpu_tuning import keep_freed_memory
from latentwire_service.engine.hf.loader import LoadedModel
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.request import Request
from latentwire_service.engine.sampling_params import SamplingParams

MAX_SLOTS = 64
MAX_MODEL_LEN = 1024
PREFILL_CHUNK = 512


class StepEngine(Protocol):
    """An engine that its caller steps."""

    @property
    def num_running(self) -> int:
        """Requests that run."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        ...

    def new_request(self, spec: GenerationSpec) -> Request:
        """Make a request."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request."""
        ...

    def step(self) -> object:
        """Compute something."""
        ...


def run_engine(engine: StepEngine, workload: Workload) -> Sample:
    """Generate for all prompts, with at most `workload.concurrency` in flight.

    Args:
        engine: has no requests.
        workload: of one round.
    """
    started = time.perf_counter()
    requests: list[Request] = []
    waiting = deque(enumerate(workload.prompts))
    while waiting or engine.num_running + engine.num_waiting:
        while waiting and engine.num_running + engine.num_waiting < workload.concurrency:
            seed, prompt = waiting.popleft()
            requests.append(_submit(engine, prompt, workload.new_tokens, seed, workload.max_rows))
        engine.step()
    seconds = time.perf_counter() - started
    completions: list[Completion] = [request.future.result(0) for request in requests]
    for done in completions:
        num_tokens = len(done.token_ids)
        kept = num_tokens if workload.max_rows is None else workload.max_rows
        assert len(done.hidden_state) == min(num_tokens, kept)
    return Sample(
        sum(len(c.token_ids) for c in completions),
        seconds,
        ttft_s=statistics.median(c.queue_s + c.prefill_s for c in completions),
        tpot_s=statistics.median(c.decode_s / max(len(c.token_ids) - 1, 1) for c in completions),
    )


def _submit(
    engine: StepEngine, prompt: list[int], new_tokens: int, seed: int, max_rows: int | None
) -> Request:
    sampling = SamplingParams(max_new_tokens=new_tokens, seed=seed, top_p=TOP_P)
    request = engine.new_request(
        GenerationSpec(str(seed), Prompt(tuple(prompt)), sampling, k=max_rows)
    )
    engine.add(request)
    return request


class InProcess:
    """The engine, stepped in this thread; all hidden rows kept.

    Args:
        compile_decode: compile the decode step, as `--compile` does.
        ends_at_eos: end at the end-of-sequence token, as a served model does. If False, every
            contender generates the same number of tokens.
    """

    def __init__(
        self, loaded: LoadedModel, compile_decode: bool = False, ends_at_eos: bool = False
    ) -> None:
        keep_freed_memory()
        probed = probe(loaded.model)
        runner = build_runner(loaded.model, probed, MAX_SLOTS, MAX_MODEL_LEN, compile_decode)
        eos = loaded.eos_token_ids if ends_at_eos else frozenset()
        self.engine = Engine(runner, loaded.tokenizer, eos, PREFILL_CHUNK, time.monotonic)

    def submit(self, prompt: list[int], new_tokens: int, seed: int) -> Request:
        """Queue one request."""
        return _submit(self.engine, prompt, new_tokens, seed, None)

    def run(self, workload: Workload) -> Sample:
        """Generate for all prompts, with at most `workload.concurrency` in flight."""
        return run_engine(self.engine, workload)


class OverHttp:
    """`latentwire serve` as a child process, called by concurrent threads of one client.

    A served model ends at its end-of-sequence token: compare with `InProcess(ends_at_eos=True)`,
    which generates the same tokens.
    """

    def __init__(self, model: str, dtype: str, threads: int, device: str = "auto") -> None:
        with socket.socket() as probe_socket:
            probe_socket.bind(("127.0.0.1", 0))
            self.port: int = probe_socket.getsockname()[1]
        flags = {
            "--model": model,
            "--dtype": dtype,
            "--threads": threads,
            "--device": device,
            "--port": self.port,
            "--max-slots": MAX_SLOTS,
            "--max-model-len": MAX_MODEL_LEN,
            "--prefill-chunk": PREFILL_CHUNK,
            "--log-level": "error",
        }
        arguments = [str(part) for flag in flags.items() for part in flag]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "latentwire_service", *arguments], stdout=subprocess.DEVNULL
        )
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.client.wait_ready(300)

    @property
    def pid(self) -> int:
        """The service's process id."""
        return self._child.pid

    def run(self, workload: Workload) -> Sample:
        """Send all tasks, with at most `workload.concurrency` in flight."""

        def send(numbered: tuple[int, str]) -> PlanLatent:
            seed, task = numbered
            answer = self.client.plan_latent(
                task, seed=seed, max_new_tokens=workload.new_tokens, top_p=TOP_P
            )
            assert answer.hidden_state.shape[0] == len(answer.token_ids)
            return answer

        with ThreadPoolExecutor(workload.concurrency) as pool:
            started = time.perf_counter()
            answers = list(pool.map(send, enumerate(workload.tasks)))
            seconds = time.perf_counter() - started
        timings = [answer.timings for answer in answers]
        return Sample(
            sum(len(answer.token_ids) for answer in answers),
            seconds,
            ttft_s=statistics.median(t.queue_ms + t.prefill_ms for t in timings) / 1e3,
            tpot_s=statistics.median(
                answer.timings.decode_ms / max(len(answer.token_ids) - 1, 1) for answer in answers
            )
            / 1e3,
        )

    def close(self) -> None:
        """Stop the service."""
        self.client.close()
        self._child.terminate()
        self._child.wait(60)
