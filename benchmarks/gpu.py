"""The engine on the shapes of real models, next to batched `generate` and the memory's limit.

    python -m benchmarks.gpu --model qwen2.5-0.5b
    python -m benchmarks.gpu --tiny                      # seconds on a CPU

Needs torch, transformers, numpy and this repository. The weights are random, so that nothing is
downloaded; the speed of greedy decoding does not depend on their values. A cell that exceeds its
time is cut short and counts the tokens that it has by then. A cell without memory or time left is
skipped, with the reason. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.gpu_models import MODELS, build
from latentwire_service.engine.backend import GenerationSpec
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.errors import EngineError, RequestCancelledError
from latentwire_service.engine.hf import attention
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.decode_step import make_traceable
from latentwire_service.engine.hf.loader import pick_device
from latentwire_service.engine.hf.memory import available_bytes
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.hf.probe import Probe, probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.runner import ModelRunner
from latentwire_service.engine.sampling_params import SamplingParams

PROMPT_TOKENS = 64
PREFILL_CHUNK = 8192
ROWS_KEPT = 8
# Of the free memory, for the KV cache; activations and recorded graphs need the rest.
MEMORY_FRACTION = 0.8
# The most important number of slots first: the time may not be enough for all.
SLOTS = [64, 1, 256, 16]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        contender: "generate", "engine" or "engine, compiled".
        slots: sequences that run together.
        rows: hidden rows kept of each sequence: "all", "8", or "none".
        tokens_per_s: generated tokens per second, all sequences; None when skipped.
        step_ms: time of one token of all sequences.
        limit_tokens_per_s: if a step took only the time to read weights and KV cache once.
        bytes_per_step: of weights, and of the KV cache at the mean length.
        note: why it was skipped or cut short; "" otherwise.
    """

    contender: str
    slots: int
    rows: str
    tokens_per_s: float | None = None
    step_ms: float | None = None
    limit_tokens_per_s: float | None = None
    bytes_per_step: int | None = None
    note: str = ""


class TextlessTokenizer:
    """Decodes to nothing: text costs the same for every contender."""

    def decode(self, token_ids: Sequence[int], /, **_options: bool) -> str:
        """Return no text."""
        return "x" * len(token_ids)


class Bench:
    """All cells of one model.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = pick_device(args.device)
        self.started = time.perf_counter()
        self.model = build(args.model, self.device, args.dtype)
        self.probed: Probe = probe(self.model)
        self.length = PROMPT_TOKENS + args.new_tokens
        self.position_bytes = self.probed.values_per_position * self.model.dtype.itemsize
        self.weight_bytes = read_bytes(self.model)
        self.bandwidth = copy_bandwidth(self.device, args.copy_mib * 2**20)

    def run(self) -> Iterator[Cell]:
        """Measure: `generate` and the plain engine first, then the compiled one."""
        fitting = []
        for slots in self.args.slots:
            needed = slots * (self.length + 1) * self.position_bytes
            if needed > MEMORY_FRACTION * available_bytes(self.device):
                yield Cell(
                    "engine", slots, "all", note=f"needs {needed / 2**30:.1f} GiB of KV cache"
                )
            else:
                fitting.append(slots)
        if not fitting:
            return
        runner: ModelRunner = build_runner(self.model, self.probed, max(fitting), self.length)
        for slots in fitting:
            yield self._attempt("generate", slots, "none", None)
            yield self._attempt("engine", slots, "all", runner)
            yield self._attempt("engine", slots, str(ROWS_KEPT), runner)
        del runner
        yield from self._compiled(fitting)

    def _compiled(self, fitting: Sequence[int]) -> Iterator[Cell]:
        if self._seconds_left() <= 0:
            yield Cell("engine, compiled", max(fitting), "all", note="no time left")
            return
        try:
            # On what `build_runner` made of the model, which cannot be put on slots twice.
            make_traceable(self.model)
            runner = HfModelRunner(
                self.model,
                self.probed.shapes,
                self.probed.hidden_size,
                max(fitting),
                self.length,
                compile_decode=True,
            )
            runner.warm_up()
        except (EngineError, RuntimeError) as error:
            yield Cell("engine, compiled", max(fitting), "all", note=first_line(error))
            return
        for slots in fitting:
            yield self._attempt("engine, compiled", slots, "all", runner)
            yield self._attempt("engine, compiled", slots, str(ROWS_KEPT), runner)

    def _attempt(self, contender: str, slots: int, rows: str, runner: ModelRunner | None) -> Cell:
        if self._seconds_left() <= 0:
            return Cell(contender, slots, rows, note="no time left")
        limit_s = min(self.args.cell_s, self._seconds_left())
        try:
            if runner is None:
                num_tokens, seconds = self._generate(slots, limit_s)
            else:
                num_tokens, seconds = self._engine(runner, slots, rows, limit_s)
        except RuntimeError as error:
            # Among them torch.OutOfMemoryError: the other cells may still fit.
            return Cell(contender, slots, rows, note=first_line(error))
        num_steps = num_tokens / slots
        bytes_per_step = self.weight_bytes + int(
            slots * self.position_bytes * (PROMPT_TOKENS + num_steps / 2)
        )
        return Cell(
            contender,
            slots,
            rows,
            tokens_per_s=num_tokens / seconds,
            step_ms=seconds / num_steps * 1e3,
            limit_tokens_per_s=slots * self.bandwidth / bytes_per_step,
            bytes_per_step=bytes_per_step,
            note="" if num_steps >= self.args.new_tokens else f"cut after {num_steps:.0f} tokens",
        )

    def _seconds_left(self) -> float:
        return float(self.args.budget_s) - (time.perf_counter() - self.started)

    def _prompts(self, slots: int) -> list[list[int]]:
        rng = np.random.default_rng(0)
        vocab_size = self.model.config.vocab_size
        return [rng.integers(3, vocab_size, PROMPT_TOKENS).tolist() for _ in range(slots)]

    def _engine(
        self, runner: ModelRunner, slots: int, rows: str, limit_s: float
    ) -> tuple[int, float]:
        """Run all requests to their end; return tokens and seconds, prefill included."""
        engine = Engine(runner, TextlessTokenizer(), frozenset(), PREFILL_CHUNK, time.monotonic)
        for new_tokens in (2, self.args.new_tokens):
            sampling = SamplingParams(max_new_tokens=new_tokens, seed=0, do_sample=False)
            k = None if rows == "all" else int(rows)
            for number, prompt in enumerate(self._prompts(slots)):
                spec = GenerationSpec(str(number), Prompt(tuple(prompt)), sampling, k)
                engine.add(engine.new_request(spec))
            num_tokens, started = 0, time.perf_counter()
            while time.perf_counter() - started < limit_s:
                stats = engine.step()
                if stats is None:
                    break
                num_tokens += stats.num_new_tokens
            seconds = time.perf_counter() - started
            engine.fail_all(RequestCancelledError("the cell's time is up"))
        return num_tokens, seconds

    @torch.inference_mode()
    def _generate(self, slots: int, limit_s: float) -> tuple[int, float]:
        """Hugging Face's batched `generate`, on the model's fused attention."""
        token_ids = torch.tensor(self._prompts(slots), device=self.device)
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with attention.implementation(self.model, "sdpa"):
            for new_tokens in (2, self.args.new_tokens):
                started = time.perf_counter()
                output = self.model.generate(
                    token_ids,
                    attention_mask=torch.ones_like(token_ids),
                    max_new_tokens=new_tokens,
                    max_time=limit_s,
                    **options,
                )
                synchronize(self.device)
                seconds = time.perf_counter() - started
        return slots * (output.shape[1] - PROMPT_TOKENS), seconds


def read_bytes(model: Any) -> int:
    """Bytes of weights that one step reads: all but an embedding that no product uses."""
    num_bytes: int = sum(parameter.nbytes for parameter in model.parameters())
    embedding, head = (
        m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    return num_bytes if head is embedding else num_bytes - int(embedding.nbytes)


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of a copy within the device's memory, read and written."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * num_bytes / best


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CUDA branch is reached on a GPU only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_line(error: Exception) -> str:
    """Name an error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100]


def print_cells(cells: Sequence[Cell]) -> None:
    """Print a table; the last column is relative to `generate` with as many slots."""
    rates = {c.slots: c.tokens_per_s for c in cells if c.contender == "generate"}
    heads = ("contender", "slots", "rows", "tokens/s", "ms/step", "limit", "of limit", "x generate")
    print(("{:<18}" + "{:>11}" * 7).format(*heads))
    for cell in cells:
        values = ["-"] * 5
        if cell.tokens_per_s is not None and cell.limit_tokens_per_s is not None:
            base = rates.get(cell.slots)
            values = [
                f"{cell.tokens_per_s:.0f}",
                f"{cell.step_ms:.2f}",
                f"{cell.limit_tokens_per_s:.0f}",
                f"{cell.tokens_per_s / cell.limit_tokens_per_s:.0%}",
                f"{cell.tokens_per_s / base:.2f}" if base else "-",
            ]
        line = f"{cell.contender:<18}{cell.slots:>11}{cell.rows:>11}"
        print(line + "".join(f"{value:>11}" for value in values), cell.note)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(argv)
    bench = Bench(args)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    print(
        f"{args.model}, {args.dtype} on {name}: each step reads {bench.weight_bytes / 1e6:.1f} MB "
        f"of weights and {bench.position_bytes / 1e3:.1f} kB per cached position; a copy moves "
        f"{bench.bandwidth / 1e9:.0f} GB/s"
    )
    cells = list(bench.run())
    print_cells(cells)
    result = {
        "model": args.model,
        "dtype": args.dtype,
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": args.new_tokens,
        "weight_bytes_per_step": bench.weight_bytes,
        "bandwidth_bytes_per_s": bench.bandwidth,
        "seconds": time.perf_counter() - bench.started,
        "cells": [asdict(cell) for cell in cells],
    }
    print(json.dumps(result))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `--tiny` changes the defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few tokens")
    parser.add_argument("--model", choices=MODELS, default=None, help="default: qwen2.5-0.5b")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    parser.add_argument("--slots", type=int, nargs="+", help="in order of importance")
    parser.add_argument("--new-tokens", type=int, help="default: 512")
    parser.add_argument("--cell-s", type=float, default=20.0, help="seconds of one cell at most")
    parser.add_argument(
        "--budget-s", type=float, default=420.0, help="seconds after which no cell starts"
    )
    args = parser.parse_args(argv)
    args.model = args.model or ("tiny" if args.tiny else "qwen2.5-0.5b")
    args.slots = args.slots or ([2, 1] if args.tiny else SLOTS)
    args.new_tokens = args.new_tokens or (12 if args.tiny else 512)
    args.copy_mib = 16 if args.tiny else 1024
    return args


if __name__ == "__main__":
    main()
