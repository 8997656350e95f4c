"""`make bench`: latentwire and its peers in turn, tables, JSON, and an account of one step.

python -m benchmarks --dtypes bf16 --concurrency 1 64 --new-tokens 128 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import has_vllm
from benchmarks.report import Measurement, print_table
from benchmarks.worker import CONTENDERS, OURS
from latentwire_service.engine.hf.cpu.cpu_tuning import thread_environment


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, args: argparse.Namespace, dtype: str) -> None:
        self.contender = contender
        flags = ["--model", args.model, "--dtype", dtype, "--threads", str(args.threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
            # The service sets these variables itself. Peers run with their defaults.
            env=os.environ | (thread_environment(os.environ) if contender in OURS else {}),
        )
        self._read()

    def run(self, concurrency: int, new_tokens: int) -> Measurement:
        """Run one round."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"concurrency": concurrency, "new_tokens": new_tokens}) + "\n"
        )
        self._process.stdin.flush()
        return Measurement(**json.loads(self._read()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(90)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.contender} ended early; run with --verbose for its errors")
        return line


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = _parse(argv)
    results = []
    for dtype in args.dtypes:
        for concurrency in args.concurrency:
            rounds = _measure(args, dtype, concurrency)
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


def _measure(
    args: argparse.Namespace, dtype: str, concurrency: int
) -> dict[str, list[Measurement]]:
    workers = [Worker(name, args, dtype) for name in args.contenders]
    rounds: dict[str, list[Measurement]] = {worker.contender: [] for worker in workers}
    try:
        for worker in workers:
            worker.run(min(concurrency, 4), 8)
        for _ in range(args.rounds):
            for worker in workers:
                rounds[worker.contender].append(worker.run(concurrency, args.new_tokens))
    finally:
        for worker in workers:
            worker.close()
    return rounds


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    available = [name for name in CONTENDERS if name != "vllm" or has_vllm()]
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=available)
    parser.add_argument("--no-account", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
