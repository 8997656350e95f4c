"""Collections over stub replicas, next to the classic way: MB/s, CPU time per row, peak memory.

    python -m benchmarks.collection --replicas 1 2 4 8 --rows 2000

The stubs send answers that were made before, so they are not the limit. Three ways are measured,
each in a process of its own:

- `classic`: httpx, answers as nested lists, `Dataset.from_dict`, `to_parquet`; on fewer rows,
  because nested lists take 32 bytes per value;
- `receive`: a session of `collect` up to its log, without the final files;
- `collect`: the whole command, once for each number of `--workers`; its CPU time is that of all
  processes together, and its memory that of the largest one.

`--profile` shows where `receive` spends its time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from latentwire_batch.console import Console
from latentwire_batch.dispatch.seeds import Seeds
from latentwire_batch.dispatch.session import RowRequest, SessionPlan, run_session
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.replicas.given import GivenReplicas
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.tasks.rows import Row

STEPS, WIDTH = 256, 896
_ROW_BYTES = STEPS * WIDTH * 4
_NUM_PROFILED = 20
_TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--classic-rows", type=int, default=60)
    parser.add_argument("--concurrency", type=int, default=8, help="rows in flight per replica")
    parser.add_argument("--workers", type=int, nargs="*", default=[1], help="of `collect`")
    parser.add_argument(
        "--ways", nargs="*", default=["classic", "receive", "collect"], help="those to measure"
    )
    parser.add_argument("--directory", type=Path, help="a folder for temporary files")
    parser.add_argument("--profile", action="store_true", help="profile `receive` with cProfile")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.stage:
        name, directory, *urls = args.stage
        STAGES[name](Path(directory), urls, args)
        return
    results: dict[str, object] = {}
    print("| Way | Replicas | Rows | MB/s | CPU, ms a row | MB/s of a core | Peak memory, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for count in args.replicas:
        with stubs(count) as urls, tempfile.TemporaryDirectory(dir=args.directory) as directory:
            for name, num_workers in _ways(args):
                way = name if num_workers == 1 else f"{name}, {num_workers} workers"
                wanted = [*flags, *["--workers", str(num_workers)] * (name == "collect")]
                found = measure(name, Path(directory), urls, args, wanted)
                results[f"{way}_{count}"] = found
                print(f"| {way} | {count} | {' | '.join(map(str, found.values()))} |", flush=True)
    print(json.dumps(results))


def _ways(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield the ways to measure, each with its number of workers."""
    for name in args.ways:
        for num_workers in args.workers if name == "collect" else [1]:
            yield name, num_workers


@contextmanager
def stubs(count: int) -> Iterator[list[str]]:
    """Run stubs; yield their addresses."""
    command = [sys.executable, "-m", "benchmarks.collection.fast_stub", "--rows", str(STEPS)]
    with ExitStack() as running:
        urls = []
        for _ in range(count):
            process = running.enter_context(
                subprocess.Popen(
                    [*command, "--width", str(WIDTH)], stdout=subprocess.PIPE, encoding="ascii"
                )
            )
            running.callback(process.kill)
            assert process.stdout is not None
            urls.append(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        yield urls


def measure(
    name: str, directory: Path, urls: list[str], args: argparse.Namespace, flags: Sequence[str]
) -> dict[str, float]:
    """Run one way in a process of its own."""
    num_rows = args.classic_rows if name == "classic" else args.rows
    command = [sys.executable, "-m", "benchmarks.collection", "--rows", str(num_rows)]
    command += ["--concurrency", str(args.concurrency), *["--profile"] * args.profile]
    command += ["--stage", name, str(directory), *urls]
    if name == "collect":
        command = collect_command(directory, urls, args, flags)
    before_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    if status:
        raise SystemExit(f"{name} failed")
    measured = {"wall_s": time.monotonic() - before_s, "cpu_s": usage.ru_utime + usage.ru_stime}
    *profile, last = printed.splitlines() or [""]
    if profile:
        print("\n".join(profile))
    # A stage leaves its start-up out.
    measured |= json.loads(last or "{}")
    size_mb = num_rows * _ROW_BYTES / 1e6
    return {
        "rows": num_rows,
        "mb_per_s": round(size_mb / measured["wall_s"]),
        "cpu_ms_per_row": round(measured["cpu_s"] / num_rows * 1e3, 2),
        "mb_per_core_s": round(size_mb / measured["cpu_s"]),
        "peak_mb": round(usage.ru_maxrss * 1.024 / 1e3),
    }


def collect_command(
    directory: Path, urls: list[str], args: argparse.Namespace, flags: Sequence[str]
) -> list[str]:
    """Return the command line of a whole collection."""
    tasks, output = directory / "tasks.jsonl", directory / "out"
    shutil.rmtree(output, ignore_errors=True)
    lines = (json.dumps({"task": f"task {index}"}) + "\n" for index in range(args.rows))
    tasks.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks)]
    command += ["--output-dir", str(output), "--seed", "1", *flags]
    command += ["--concurrency", str(args.concurrency)]
    return [*command, *(part for url in urls for part in ("--replica", url))]


def receive(directory: Path, urls: Sequence[str], args: argparse.Namespace) -> None:
    """Send all rows, and log the answers."""
    path = directory / "rows.log"
    store = RowStore(RecordLog(path), args.rows)

    async def open_store(_: ModelIdentity) -> RowStore:
        return store

    plan = SessionPlan(
        rows=lambda: (Row(index, str(index), f"task {index}") for index in range(args.rows)),
        request=RowRequest(None, {"max_new_tokens": 512, "temperature": 0.7}, Seeds(1)),
        source=GivenReplicas(urls, None, _TIMEOUT_S, _TIMEOUT_S),
        open_store=open_store,
        concurrency=args.concurrency,
        max_retries=0,
    )
    profile = cProfile.Profile() if args.profile else None
    with timed():
        if profile is not None:
            profile.enable()
        asyncio.run(run_session(plan, Console(io.StringIO())))
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(_NUM_PROFILED)
    store.close()
    path.unlink()


def classic(directory: Path, urls: Sequence[str], args: argparse.Namespace) -> None:
    """Collect nested lists, and make a dataset of them."""
    import datasets

    with timed():
        with httpx.Client(timeout=_TIMEOUT_S) as http, ThreadPoolExecutor(len(urls)) as threads:

            def plan(index: int) -> dict[str, Any]:
                url = f"{urls[index % len(urls)]}/plan_latent"
                answer: dict[str, Any] = http.post(url, json={"task": f"task {index}"}).json()
                return answer

            found = list(threads.map(plan, range(args.rows)))
        columns = {
            "task": [f"task {index}" for index in range(args.rows)],
            "task_id": [str(index) for index in range(args.rows)],
            "plan": [answer["plan"] for answer in found],
            "hidden_state": [answer["hidden_state"] for answer in found],
        }
        datasets.Dataset.from_dict(columns).to_parquet(str(directory / "classic.parquet"))


@contextmanager
def timed() -> Iterator[None]:
    """Print the time that the block takes, of the wall and of the CPU."""
    wall_s, cpu_s = time.monotonic(), time.process_time()
    yield
    print(json.dumps({"wall_s": time.monotonic() - wall_s, "cpu_s": time.process_time() - cpu_s}))


STAGES: dict[str, Callable[[Path, Sequence[str], argparse.Namespace], None]] = {
    "classic": classic,
    "receive": receive,
}


if __name__ == "__main__":
    main()
