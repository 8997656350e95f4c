"""Time to first token of a prompt with a known template, compared with an unknown template.

    python -m benchmarks.prefix_ttft --template-tokens 50 500 1500

The first request with a new template computes all of it. The third request reuses it, because the
engine keeps a prefix that two requests share. Nothing else runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from benchmarks.ours import InProcess
from benchmarks.workload import build_workload, load

_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--template-tokens", type=int, nargs="+", default=[50, 200, 700])
    args = parser.parse_args()
    loaded = load(args.model, args.dtype, args.threads)
    engine = InProcess(loaded)
    (task,) = build_workload(loaded.tokenizer, 1, 1).prompts
    results = []
    for length in args.template_tokens:
        times: dict[str, list[float]] = {"computed": [], "kept": []}
        for round_ in range(_ROUNDS):
            # A different first token makes a different template.
            template = [100 + round_ + length, *(task * length)[: length - 1]]
            computed = ttft_s(engine, [*template, *task[:20], 200])
            ttft_s(engine, [*template, *task[:20], 201])
            times["computed"].append(computed)
            times["kept"].append(ttft_s(engine, [*template, 300, *task[:20]]))
        medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
        results.append({"template_tokens": length, "ttft_ms": medians})
        print(
            f"{length} template tokens: {medians['computed']:.1f} ms computed, "
            f"{medians['kept']:.1f} ms kept"
        )
    print(json.dumps(results))


def ttft_s(engine: InProcess, prompt: list[int]) -> float:
    request = engine.submit(prompt, new_tokens=1, seed=0)
    while engine.engine.step() is not None:
        pass
    completion = request.future.result(0)
    return completion.queue_s + completion.prefill_s


if __name__ == "__main__":
    main()
