"""One contender in a process of its own. It reads rounds and writes samples as JSON lines.

Separate processes keep the peak memory of each contender separate, and let contenders take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from benchmarks import peers
from benchmarks.ours import InProcess, OverHttp, peak_rss_bytes
from benchmarks.workload import Sample, Workload, build_workload, load

PEERS: dict[str, Callable[..., Sample]] = {
    "research-loop": peers.research_loop,
    "batched-generate": peers.batched_generate,
    "batched-generate-hidden": peers.batched_generate_hidden,
    "continuous-batching": peers.continuous_batching,
}
OURS = ["latentwire", "latentwire-compiled", "latentwire-eos", "latentwire-http"]
# These two run more requests than are in flight at once, so that filling and emptying matter less.
STEADY = ["latentwire-eos", "latentwire-http"]
_STEADY_ROUNDS = 3
CONTENDERS = [*OURS, *PEERS, "vllm"]


def main() -> None:
    """Serve rounds until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    loaded = load(args.model, args.dtype, args.threads)
    service: OverHttp | None = None
    pid = None
    run: Callable[[Workload], Sample]
    if args.contender in ("latentwire", "latentwire-compiled", "latentwire-eos"):
        kind = args.contender.removeprefix("latentwire")
        run = InProcess(loaded, kind == "-compiled", kind == "-eos").run
    elif args.contender == "latentwire-http":
        service = OverHttp(args.model, args.dtype, args.threads)
        run, pid = service.run, service.pid
    elif args.contender == "vllm":
        run = peers.Vllm(loaded.model.name_or_path, args.dtype).run
    else:
        run = partial(PEERS[args.contender], loaded)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        round_ = json.loads(line)
        concurrency, count = round_["concurrency"], round_["concurrency"]
        if args.contender in STEADY:
            count *= _STEADY_ROUNDS
        workload = build_workload(loaded.tokenizer, count, round_["new_tokens"], concurrency)
        answer = asdict(run(workload)) | {"peak_rss_bytes": peak_rss_bytes(pid)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if service is not None:
        service.close()


if __name__ == "__main__":
    main()
