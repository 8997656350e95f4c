"""`make bench`: latentwire and its peers in turn, tables, JSON, and an account of one step.

python -m benchmarks --dtypes bf16 --concurrency 1 64 --new-tokens 128 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import Measurement, print_table
from benchmarks.worker import CONTENDERS, OURS, OVER_VLLM, SHARED
from latentwire_service.engine.hf.cpu.cpu_tuning import thread_environment
from latentwire_service.engine.hf.loader import pick_device

ROOT = Path(__file__).parent.parent
# They are compared with what runs over vLLM in the service, down to its variables.
_LIKE_OURS = ["vllm-latents", "vllm-stream"]


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, args: argparse.Namespace, dtype: str) -> None:
        self.contender = contender
        flags = ["--model", args.model, "--dtype", dtype, "--device", args.device]
        # The service sets these variables itself. Peers run with their defaults.
        own = thread_environment(os.environ) if contender in [*OURS, *_LIKE_OURS] else {}
        python = sys.executable
        if contender in OVER_VLLM and args.vllm_python is not None:
            python = args.vllm_python
            own["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in ("client", "service"))
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", contender, *flags, "--threads", str(args.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
            env=os.environ | own,
            cwd=ROOT,
        )
        self._read()

    def run(self, concurrency: int, new_tokens: int, max_rows: int | None = None) -> Measurement:
        """Run one round."""
        assert self._process.stdin is not None
        round_ = {"concurrency": concurrency, "new_tokens": new_tokens, "max_rows": max_rows}
        # A process that has ended shows when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(round_) + "\n")
            self._process.stdin.flush()
        return Measurement(**json.loads(self._read()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(90)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.contender} ended early; run with --verbose for its errors")
        return line


Rounds = dict[str, list[Measurement]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = _parse(argv)
    results = []
    for dtype in args.dtypes:
        for concurrency, rounds in _measure(args, dtype).items():
            print_table(f"{dtype}, concurrency {concurrency}", rounds)
            results.append({"dtype": dtype, "concurrency": concurrency, "rounds": rounds})
    line = json.dumps(
        {"model": args.model, "threads": args.threads, "new_tokens": args.new_tokens}
        | {"results": results},
        default=vars,
    )
    if args.json is not None:
        args.json.write_text(line + "\n", encoding="utf-8")
    print(line)
    if not args.no_account:
        for dtype in args.dtypes:
            _account(args, dtype)


def _account(args: argparse.Namespace, dtype: str) -> None:
    flags = ["--model", args.model, "--dtype", dtype, "--threads", str(args.threads)]
    command = [sys.executable, "-m", "benchmarks.step_account", *flags]
    subprocess.run(
        [*command, "--batch", str(max(args.concurrency))],
        env=os.environ | thread_environment(os.environ),
        stderr=None if args.verbose else subprocess.DEVNULL,
        check=False,
    )


def _measure(args: argparse.Namespace, dtype: str) -> dict[int, Rounds]:
    """Return the rounds of each concurrency. Peaks of memory grow, so the smallest comes first."""
    found: dict[int, Rounds] = {
        number: {name: [] for name in args.contenders} for number in sorted(args.concurrency)
    }
    hosts = list(dict.fromkeys(_host(name) for name in args.contenders))
    for group in [[host] for host in hosts] if args.alone else [hosts]:
        workers: dict[str, Worker] = {}
        try:
            for host in group:
                workers[host] = Worker(host, args, dtype)
            for concurrency, rounds in found.items():
                _take_turns(workers, concurrency, args, rounds)
        finally:
            for worker in workers.values():
                worker.close()
    return found


def _host(contender: str) -> str:
    """Return the contender in whose process one runs."""
    return SHARED[contender][0] if contender in SHARED else contender


def _take_turns(
    workers: Mapping[str, Worker], concurrency: int, args: argparse.Namespace, rounds: Rounds
) -> None:
    for worker in workers.values():
        worker.run(min(concurrency, 4), 8)
    names = [name for name in rounds if _host(name) in workers]
    for number in range(args.rounds):
        # Another one begins each time, so that none has the machine at its best in every round.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            max_rows = SHARED[name][1] if name in SHARED else None
            worker = workers[_host(name)]
            rounds[name].append(worker.run(concurrency, args.new_tokens, max_rows))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        help="all that can run; those over vLLM where it is installed",
    )
    parser.add_argument(
        "--vllm-python", help="the interpreter of an environment with vLLM, for what runs over it"
    )
    parser.add_argument(
        "--alone",
        action=argparse.BooleanOptionalAction,
        help="start each contender when the one before has ended, so that each has all of the "
        "memory; the default on a GPU. Else they take turns",
    )
    parser.add_argument("--no-account", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args(argv)
    is_on_gpu = pick_device(args.device).type != "cpu"
    if args.alone is None:
        args.alone = is_on_gpu
    has_vllm = args.vllm_python is not None or importlib.util.find_spec("vllm") is not None
    if args.contenders is None:
        args.contenders = [name for name in CONTENDERS if name not in OVER_VLLM or has_vllm]
    # The account is of a step on a CPU.
    args.no_account |= is_on_gpu
    return args


if __name__ == "__main__":
    main()
