"""One contender in a process of its own. It reads rounds and writes samples as JSON lines.

Separate processes keep the peak memory of each contender separate, and let contenders take turns.
They may run in different environments: only what a contender needs is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.contenders.processes import usage_of
from benchmarks.workload import Sample, Workload, build_workload, load, read

PEERS = ["research-loop", "batched-generate", "batched-generate-hidden", "continuous-batching"]
OURS = ["latentwire", "latentwire-compiled", "latentwire-eos", "latentwire-http"]
OVER_VLLM = ["vllm-latents", "vllm-latents-k0", "vllm-stream", "vllm"]
# Contenders that are rounds of another one's process, with so many rows kept.
SHARED: dict[str, tuple[str, int]] = {"vllm-latents-k0": ("vllm-latents", 0)}
# These two run more requests than are in flight at once, so that filling and emptying matter less.
STEADY = ["latentwire-eos", "latentwire-http"]
_STEADY_ROUNDS = 3
CONTENDERS = [*OURS, *PEERS, *OVER_VLLM]


@dataclass(frozen=True)
class Contender:
    """A contender whose model is loaded.

    Attributes:
        run: generates for one workload.
        tokenizer: of the model.
        close: ends what it has started.
    """

    run: Callable[[Workload], Sample]
    tokenizer: Any
    close: Callable[[], None] = lambda: None


def main() -> None:
    """Serve rounds until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=[each for each in CONTENDERS if each not in SHARED])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    # What libraries and their processes print belongs to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    contender = (_over_vllm if args.contender in OVER_VLLM else _over_transformers)(args)
    print("ready", file=answers)
    for line in sys.stdin:
        round_ = json.loads(line)
        count = concurrency = round_["concurrency"]
        if args.contender in STEADY:
            count *= _STEADY_ROUNDS
        workload = build_workload(
            contender.tokenizer, count, round_["new_tokens"], concurrency, round_["max_rows"]
        )
        before = usage_of(os.getpid())
        sample = contender.run(workload)
        after = usage_of(os.getpid())
        used = {"cpu_s": after.cpu_s - before.cpu_s, "peak_rss_bytes": after.peak_rss_bytes}
        print(json.dumps(asdict(sample) | used), file=answers)
    contender.close()


def _over_transformers(args: argparse.Namespace) -> Contender:
    from benchmarks.contenders import peers
    from benchmarks.ours import InProcess, OverHttp

    if args.contender == "latentwire-http":
        service = OverHttp(args.model, args.dtype, args.threads, args.device)
        return Contender(service.run, read(args.model).tokenizer, service.close)
    loaded = load(args.model, args.dtype, args.threads, args.device)
    if args.contender in OURS:
        kind = args.contender.removeprefix("latentwire")
        return Contender(
            InProcess(loaded, kind == "-compiled", kind == "-eos").run, loaded.tokenizer
        )
    run = {
        "research-loop": peers.research_loop,
        "batched-generate": peers.batched_generate,
        "batched-generate-hidden": peers.batched_generate_hidden,
        "continuous-batching": peers.continuous_batching,
    }[args.contender]
    return Contender(partial(run, loaded), loaded.tokenizer)


def _over_vllm(args: argparse.Namespace) -> Contender:
    from latentwire_service.vllm_engine.environment import prepare_environment

    # vLLM reads them when it is imported.
    prepare_environment(os.environ, "error")
    from benchmarks.contenders.vllm_arguments import engine_args
    from benchmarks.contenders.vllm_latents import WithRows
    from benchmarks.contenders.vllm_text import AllAtOnce, Streamed

    files = read(args.model)
    engine = engine_args(files.location, args.dtype, args.device)
    contender: AllAtOnce | Streamed | WithRows
    if args.contender == "vllm":
        contender = AllAtOnce(engine)
    elif args.contender == "vllm-stream":
        contender = Streamed(engine)
    else:
        contender = WithRows(engine, files)
    return Contender(contender.run, files.tokenizer, contender.close)


if __name__ == "__main__":
    main()
