"""The parts of one decode step's time, compared with the limit that its matrix products set.

    python -m benchmarks.step_account --dtype bf16 --batch 64

It runs on a CPU, in a process of its own, so that its threads wait as those of the service do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.ours import MAX_MODEL_LEN
from benchmarks.workload import TOP_P, build_workload, load
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.cpu.cpu_tuning import keep_freed_memory
from latentwire_service.engine.hf.cpu.linear import Product
from latentwire_service.engine.hf.loader import pick_device
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.runner import PromptPart, StepOutput
from latentwire_service.engine.sampler import SamplingBatch, sample
from latentwire_service.engine.sampling_params import SamplingParams

_POSITION = 120
_REPEATS = 9

# The profiler's names, by part. All other names are element-wise work (norms, rotary, activations).
_PARTS = {
    "matrix products": ("linear", "mm", "addmm", "bmm", "matmul"),
    "attention": ("decode_attention", "scaled_dot_product", "softmax"),
    "KV writes and reads": ("index_put", "index_select", "scatter"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    if pick_device("auto").type != "cpu":
        sys.exit("this benchmark needs a machine without a GPU")
    account_of_a_step(args.model, args.dtype, args.threads, args.batch)


def account_of_a_step(model: str, dtype: str, threads: int, batch: int) -> None:
    """Print the parts of a decode step of `batch` rows at position 120.

    Parallel work counts on the thread that distributes it. The profiler slows a step, so the parts
    are scaled to the step's time without it. Dispatch is the rest of that time.
    """
    keep_freed_memory()
    loaded = load(model, dtype, threads)
    # Count the weights before packing, which removes them from the model.
    num_weights = sum(p.numel() for p in loaded.model.parameters())
    weights = torch.ones(num_weights, dtype=loaded.model.dtype)
    runner = build_runner(loaded.model, probe(loaded.model), batch, MAX_MODEL_LEN)
    # The logits follow real text, because the number of likely tokens affects the cost of sampling.
    output, positions = _fill(runner, build_workload(loaded.tokenizer, batch, 1).prompts)
    token_ids = output.logits.argmax(-1).numpy()

    def forward() -> object:
        return runner.decode(token_ids, positions)

    forward()
    params = [SamplingParams(max_new_tokens=1, seed=row, top_p=TOP_P) for row in range(batch)]
    parameters = SamplingBatch.build(params, [0] * batch, runner.device)
    forward_ms = _median_ms(forward)
    sampling_ms = _median_ms(lambda: sample(output.logits, parameters))
    rows_ms = _median_ms(lambda: output.hidden.to("cpu", torch.float32).numpy().copy())
    parts = _profiled_parts(forward)
    watched_ms = sum(parts.values())
    parts = {name: ms * min(1.0, forward_ms / watched_ms) for name, ms in parts.items()}
    parts["Python and dispatch"] = forward_ms - sum(parts.values())
    total = forward_ms + sampling_ms + rows_ms
    table = Table(title=f"one decode step, {dtype}, {batch} rows at position {_POSITION}")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for part, milliseconds in (*parts.items(), ("sampling", sampling_ms), ("hidden rows", rows_ms)):
        table.add_row(part, f"{milliseconds:.2f}", f"{milliseconds / total:.0%}")
    table.add_row("step", f"{total:.2f}", "100%")
    read_ms = _median_ms(lambda: weights.sum())
    table.add_row("limit: weights read once", f"{read_ms:.2f}", "")
    arithmetic_ms = 2 * num_weights * batch / _flops_per_ms(loaded.model.dtype)
    table.add_row("limit: their arithmetic", f"{arithmetic_ms:.2f}", "")
    Console().print(table)


def _fill(
    runner: HfModelRunner, prompts: list[list[int]]
) -> tuple[StepOutput, npt.NDArray[np.int64]]:
    """Fill each slot with a prompt, repeated up to the position of the step."""
    outputs = [
        runner.prefill([PromptPart(slot, Prompt(tuple((prompt * _POSITION)[:_POSITION])), 0)])
        for slot, prompt in enumerate(prompts)
    ]
    logits = torch.cat([output.logits for output in outputs])
    hidden = torch.cat([output.hidden for output in outputs])
    return StepOutput(logits, hidden), np.full(len(prompts), _POSITION)


def _median_ms(function: Callable[[], object]) -> float:
    with torch.inference_mode():
        function()
        times = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def _profiled_parts(forward: Callable[[], object]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(_REPEATS):
            forward()
    parts: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        part = next(
            (part for part, names in _PARTS.items() if any(n in event.key for n in names)),
            "element-wise",
        )
        parts[part] += event.self_cpu_time_total / 1e3 / _REPEATS
    return dict(parts)


def _flops_per_ms(dtype: torch.dtype) -> float:
    """Return the rate of a product with large dimensions."""
    side = 2048
    product = Product([torch.nn.Linear(side, side, bias=False, dtype=dtype)])
    x = torch.ones(side, side, dtype=dtype)
    return 2 * side**3 / _median_ms(lambda: product(x))


if __name__ == "__main__":
    main()
