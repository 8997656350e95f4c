"""Repeated SIGKILLs: the dataset must equal that of an undisturbed run, row for row.

`python -m benchmarks.dataset_kills --kills 100 --seed 0 [--model DIRECTORY]`

The replicas of a run are stubs, or services of a small model with `--model`. At random moments, the
collector, a replica, or both are killed. The same command then resumes a killed collector. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STUB = [sys.executable, "-m", "support.batch.stub_replica"]
# The stub is a helper of the tests.
STUB_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "tests")}
TARGETS = ("collector", "replica", "both")
_PATIENCE_S = 120.0


@dataclass
class Stubs:
    """Replicas that can be killed and started again on their ports."""

    ports: list[int]
    delay_s: float
    model: str | None = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, index: int) -> subprocess.Popen[str]:
        """Start a replica. A stub listens when this returns, but a service still loads."""
        if self.model is not None:
            command = [sys.executable, "-m", "latentwire_service", "--model", self.model]
            command += ["--port", str(self.ports[index]), "--threads", "1", "--max-slots", "4"]
            return subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
        command = [*STUB, "--port", str(self.ports[index])]
        command += ["--hidden-size", "64", "--delay", str(self.delay_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=STUB_ENVIRONMENT, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def start_all(self) -> None:
        """Start a replica on every port."""
        self.processes = [self.start(index) for index in range(len(self.ports))]

    def kill(self, index: int) -> None:
        """Kill a replica with SIGKILL, and close its pipe."""
        with self.processes[index] as process:
            process.kill()

    def restart(self, index: int) -> None:
        """Start a killed replica again."""
        self.processes[index] = self.start(index)

    def stop(self) -> None:
        """Kill all replicas."""
        for index in range(len(self.processes)):
            self.kill(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--delay", type=float, default=0.05, help="seconds that a stub takes for a row"
    )
    parser.add_argument("--model", help="serve this model instead of stubs")
    parser.add_argument(
        "--longest", type=float, default=2.0, help="the longest time until a kill, in seconds"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(run(args, Path(directory))))


def run(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Make datasets until there were `--kills` kills."""
    tasks = directory / "tasks.jsonl"
    tasks.write_text(
        "".join(json.dumps({"task": f"task {i}"}) + "\n" for i in range(args.rows)),
        encoding="utf-8",
    )
    rng = random.Random(args.seed)
    ports = ReservedPorts(args.replicas)
    if args.model is not None:
        # A service, unlike a stub, does not share its port.
        ports.close()
    stubs = Stubs(ports.numbers, args.delay, args.model)
    counts: Counter[str] = Counter()
    try:
        stubs.start_all()
        collect(stubs, tasks, directory / "calm")
        while counts["kills"] < args.kills:
            output = directory / f"killed-{counts['datasets']}"
            disturb(args, rng, stubs, tasks, output, counts)
            compare(output, directory / "calm", is_exact=args.model is None)
            counts["datasets"] += 1
    finally:
        stubs.stop()
        ports.close()
    return {**counts, "rows": args.rows, "equal": True}


def disturb(
    args: argparse.Namespace,
    rng: random.Random,
    stubs: Stubs,
    tasks: Path,
    output: Path,
    counts: Counter[str],
) -> None:
    """Make one dataset under kills."""
    process = None
    while True:
        if process is None:
            process = start_collector(stubs, tasks, output)
            counts["runs"] += 1
        is_over = counts["kills"] >= args.kills
        try:
            status = process.wait(_PATIENCE_S if is_over else rng.uniform(0.05, args.longest))
        except subprocess.TimeoutExpired:
            target = rng.choice(TARGETS)
            hit(target, process, stubs, rng)
            counts["kills"] += 1
            counts[target] += 1
            if target != "replica":
                process = None
            continue
        if status != 0:
            raise SystemExit(f"the collector ended with status {status}")
        return


def hit(target: str, process: subprocess.Popen[bytes], stubs: Stubs, rng: random.Random) -> None:
    index = rng.randrange(len(stubs.ports))
    if target in ("replica", "both"):
        stubs.kill(index)
    if target in ("collector", "both"):
        process.kill()
        process.wait()
    if target in ("replica", "both"):
        time.sleep(rng.uniform(0, 0.3))
        stubs.restart(index)


def start_collector(stubs: Stubs, tasks: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks)]
    command += ["--output-dir", str(output), "--seed", "7", "--max-new-tokens", "12"]
    for port in stubs.ports:
        command += ["--replica", f"http://127.0.0.1:{port}"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def collect(stubs: Stubs, tasks: Path, output: Path) -> None:
    if start_collector(stubs, tasks, output).wait(_PATIENCE_S) != 0:
        raise SystemExit("the undisturbed run failed")


def compare(output: Path, calm: Path, is_exact: bool) -> None:
    """Exit with an error if two outputs have different rows.

    Latents of a model may differ by rounding, because the rows share steps with different rows.
    """
    if (output / ".partial").exists():
        raise SystemExit("a finished output still has its .partial")
    found, expected = (pq.read_table(path / "data.parquet") for path in (output, calm))
    if not is_exact:
        ours, theirs = found["hidden_state"], expected["hidden_state"]
        if not found.drop(["hidden_state"]).equals(expected.drop(["hidden_state"])):
            raise SystemExit("the datasets differ")
        if not np.allclose(_values(ours), _values(theirs), atol=1e-4):
            raise SystemExit("the latents differ")
        return
    if not found.equals(expected):
        raise SystemExit("the datasets differ")
    shards = sorted(path.name for path in (calm / "hf_dataset").glob("*.arrow"))
    for name in shards:
        if (output / "hf_dataset" / name).read_bytes() != (calm / "hf_dataset" / name).read_bytes():
            raise SystemExit(f"hf_dataset differs in {name}")


def _values(latents: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = latents.combine_chunks().flatten().flatten().to_numpy()
    return values


class ReservedPorts:
    """Free ports, which no other program gets while nothing listens there.

    Args:
        count: how many.

    Attributes:
        numbers: the ports.
    """

    def __init__(self, count: int) -> None:
        self._sockets = [socket.socket() for _ in range(count)]
        for each in self._sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(("127.0.0.1", 0))
        self.numbers = [int(each.getsockname()[1]) for each in self._sockets]

    def close(self) -> None:
        """Release the ports."""
        for each in self._sockets:
            each.close()


if __name__ == "__main__":
    main()
