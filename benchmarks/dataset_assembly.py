"""Assembly compared with the classic way, and collection over 1, 2, 4 and 8 stub replicas.

`python -m benchmarks.dataset_assembly --rows 2000 8000 --classic-rows 100 --replicas 1 2 4 8`

The classic way is `Dataset.from_dict` of nested Python lists, then `to_parquet`. It includes the
conversion of arrays to lists. It takes 32 bytes per value, so it runs on fewer rows. Every stage
runs in a process of its own, and the system reports its peak memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from latentwire_batch.assembly import Assembly, Totals
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.tasks.results import FinishedRow
from latentwire_batch.tasks.rows import Row

STEPS, WIDTH = 256, 896
STUB = [sys.executable, "-m", "support.batch.stub_replica"]
# The stub is a helper of the tests.
STUB_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "tests")}
_SHARD_BYTES = 500 * 10**6
_ROW_BYTES = STEPS * WIDTH * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[2000, 8000])
    parser.add_argument("--classic-rows", type=int, default=100)
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--replica-rows", type=int, default=400)
    parser.add_argument(
        "--delay", type=float, default=0.2, help="seconds that a stub takes for a row"
    )
    parser.add_argument("--directory", type=Path, help="a folder for temporary files")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        name, directory, count = args.stage
        STAGES[name](Path(directory), int(count))
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        results = measure(args, Path(directory))
    print(json.dumps(results))


def measure(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    classic = run_stage("classic", directory, args.classic_rows)
    results: dict[str, object] = {"classic": classic}
    for count in args.rows:
        store = directory / "store"
        store.mkdir()
        run_stage("fill", store, count)
        found = run_stage("assemble", store, count)
        found["times_classic"] = round(found["mb_per_s"] / classic["mb_per_s"], 1)
        print(f"assembly of {count} rows: {found}")
        results[f"assembly_{count}"] = found
        shutil.rmtree(store)
    for count in args.replicas:
        found = collect_from(directory, count, args.replica_rows, args.delay)
        print(f"{count} replicas: {found}")
        results[f"replicas_{count}"] = found
    return results


def run_stage(name: str, directory: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.dataset_assembly", "--stage", name]
    done = subprocess.run(
        [*command, str(directory), str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def collect_from(directory: Path, count: int, num_rows: int, delay_s: float) -> dict[str, float]:
    """Run the whole command over stubs that answer each row after `delay_s`."""
    tasks, output = directory / "tasks.jsonl", directory / "out"
    tasks.write_text(
        "".join(json.dumps({"task": f"task {i}"}) + "\n" for i in range(num_rows)), encoding="utf-8"
    )
    with ExitStack() as running:
        flags = []
        for _ in range(count):
            stub = [*STUB, "--steps", str(STEPS), "--hidden-size", str(WIDTH)]
            command = [*stub, "--max-slots", "8", "--delay", str(delay_s)]
            process = running.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, env=STUB_ENVIRONMENT, text=True)
            )
            running.callback(process.kill)
            assert process.stdout is not None
            flags += ["--replica", f"http://127.0.0.1:{process.stdout.readline().strip()}"]
        command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks)]
        command += ["--output-dir", str(output), "--seed", "1", "--concurrency", "8", *flags]
        before_s = time.monotonic()
        collector = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(collector.pid, 0)
        wall_s, cpu_s = time.monotonic() - before_s, usage.ru_utime + usage.ru_stime
        if status:
            raise SystemExit("the collection failed")
    shutil.rmtree(output)
    return {
        "rows_per_s": round(num_rows / wall_s, 1),
        "mb_per_s": round(num_rows * _ROW_BYTES / wall_s / 1e6, 1),
        "ideal_rows_per_s": round(count * 8 / delay_s, 1),
        "collector_cpus": round(cpu_s / wall_s, 2),
        "wall_s": round(wall_s, 2),
        "collector_peak_mb": round(usage.ru_maxrss * 1.024 / 1e3),
    }


def latents(count: int) -> Iterator[np.ndarray]:
    """Yield random latents, which compress as badly as real ones."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.standard_normal((STEPS, WIDTH), dtype=np.float32)


def fill(directory: Path, count: int) -> None:
    store = RowStore(RecordLog(directory / "rows.log"), count)
    for index, latent in enumerate(latents(count)):
        row = Row(index, str(index), f"task {index}")
        store.add_finished(
            FinishedRow(row, f"plan {index}", latent, 5, STEPS, "stop", (1,) * STEPS, 0)
        )
    store.sync()
    store.close()
    print("{}")


def assemble(directory: Path, count: int) -> None:
    store = RowStore(RecordLog(directory / "rows.log"), count)
    store.recover()
    final = directory / "final"
    final.mkdir()

    def work() -> None:
        Assembly(final, WIDTH, _SHARD_BYTES).run(store, iter(()), Totals())

    report(work, count)


def classic(directory: Path, count: int) -> None:
    import datasets

    arrays = list(latents(count))
    final = directory / "classic.parquet"

    def work() -> None:
        columns = {
            "task": [f"task {index}" for index in range(count)],
            "task_id": [str(index) for index in range(count)],
            "plan": [f"plan {index}" for index in range(count)],
            "hidden_state": [array.tolist() for array in arrays],
        }
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(columns).to_parquet(str(final))

    report(work, count)
    final.unlink()


def report(work: Callable[[], None], count: int) -> None:
    before_s, before_cpu_s = time.monotonic(), time.process_time()
    work()
    wall_s, cpu_s = time.monotonic() - before_s, time.process_time() - before_cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "mb_per_s": round(count * _ROW_BYTES / wall_s / 1e6, 1),
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_mb": round(peak / 1e3 * 1.024),
    }
    print(json.dumps(found))


STAGES = {"fill": fill, "assemble": assemble, "classic": classic}

if __name__ == "__main__":
    main()
