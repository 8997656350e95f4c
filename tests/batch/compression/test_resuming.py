from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire.compressors import make_compressor
from latentwire_batch.compression.row_log import CompressedRows
from latentwire_batch.dataset.files import locate
from latentwire_batch.dataset.reader import stored_rows
from latentwire_batch.output.layout import OutputLayout
from support.batch.evaluating import write_dataset
from support.batch.stored import Compress, matrices, read_both
from support.processes.peak_memory import peaks

# Says which row it compresses, and waits until the test lets it: a byte for each row.
WAITING = """
import os, sys
from latentwire_batch.compression import stored_form
from latentwire_batch.compression.command import main

real = stored_form.LatentEncoder.encode

def encode(self, rows):
    os.write(1, f"{int(rows[0, 0])}\\n".encode())
    os.read(0, 1)
    return real(self, rows)

stored_form.LatentEncoder.encode = encode
sys.exit(main(sys.argv[1:]))
"""
NUM_ROWS = 120
# For the start of a process on a busy machine.
_PATIENCE_S = 180.0
WIDTH = 4


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Latents whose first value is the row's index."""
    rng = np.random.default_rng(2)
    rows = [rng.standard_normal((3 + i % 5, WIDTH), np.float32) for i in range(NUM_ROWS)]
    for index, latent in enumerate(rows):
        latent[0, 0] = index
    return write_dataset(tmp_path / "numbered.parquet", rows)


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(numbered: Path, target: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*flags: str) -> subprocess.Popen[bytes]:
        args = [str(numbered), "-o", str(target), "--compressor", "mean-pool:2", *flags]
        command = [sys.executable, "-c", WAITING, *args]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def let(process: subprocess.Popen[bytes], count: int | None = None) -> None:
    """Let a process compress a number of rows; None: all."""
    assert process.stdin is not None
    if count is None:
        process.stdin.close()
        process.stdin = None
    else:
        process.stdin.write(bytes(count))
        process.stdin.flush()


def compressed_by(process: subprocess.Popen[bytes], count: int | None = None) -> list[int]:
    """The first rows that a process compresses; None: all until it ends."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, b"")
    return [int(line) for _, line in zip(range(count or NUM_ROWS), lines, strict=False)]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_compressed_is_not_compressed_again(
    sent: signal.Signals, start: Start, target: Path, numbered: Path
) -> None:
    process = start()
    let(process, 40)
    first = compressed_by(process, 40)
    process.send_signal(sent)
    let(process)
    process.wait(_PATIENCE_S)
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    with CompressedRows(OutputLayout(target).log, NUM_ROWS) as rows:
        num_settled = rows.num_settled
        # All but those that were waiting for a thread.
        assert num_settled >= 40 - 3 * (os.cpu_count() or 1)
        settled = {index for index in range(NUM_ROWS) if rows.is_settled(index)}
    assert settled <= set(range(NUM_ROWS))
    resumed = start()
    let(resumed)
    again = compressed_by(resumed)
    _, stderr = resumed.communicate(timeout=_PATIENCE_S)
    assert resumed.returncode == 0, stderr
    assert f"resuming: {num_settled} of {NUM_ROWS} rows are compressed" in stderr.decode()
    assert not settled & set(again)
    assert settled | set(again) == set(range(NUM_ROWS))
    assert set(first) <= settled | set(again)
    check(target, numbered)


def check(target: Path, numbered: Path) -> None:
    found = matrices(read_both(target), "hidden_state_comp", WIDTH)
    compressor = make_compressor("mean-pool", 2)
    for row, latent in zip(found, stored_rows(locate(numbered)), strict=True):
        np.testing.assert_array_equal(row, compressor.compress(latent.latent)["hidden_state_comp"])


def test_other_settings_are_refused_for_an_unfinished_output(
    start: Start, compress: Compress, numbered: Path
) -> None:
    process = start()
    let(process, 10)
    compressed_by(process, 10)
    process.kill()
    process.wait(_PATIENCE_S)
    ended = compress("--compressor", "first:2", source=numbered)
    assert ended.status == 2
    assert "hidden_state_comp was mean-pool (k 2, sha256 " in ended.stderr
    assert "now first (k 2, sha256 " in ended.stderr
    flags = ("--compressor", "first:2", "--overwrite")
    assert compress(*flags, source=numbered).status == 0


def test_two_at_the_same_time_are_refused(start: Start, compress: Compress, numbered: Path) -> None:
    process = start()
    compressed_by(process, 1)
    ended = compress("--compressor", "mean-pool:2", source=numbered)
    assert (ended.status, "is writing to it" in ended.stderr) == (2, True)
    let(process)
    compressed_by(process)
    assert process.wait(_PATIENCE_S) == 0


def test_a_disk_that_is_full_while_the_files_are_written_keeps_the_compressed_rows(
    compress: Compress, numbered: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    flags = ("--compressor", "mean-pool:2")
    with monkeypatch.context() as patched:
        patched.setattr("latentwire_batch.compression.compress.Rewriting.run", full_disk)
        ended = compress(*flags, source=numbered)
    assert (ended.status, "No space left on device" in ended.stderr) == (1, True)
    with monkeypatch.context() as patched:
        patched.setattr("latentwire_batch.compression.stored_form.LatentEncoder.encode", full_disk)
        assert compress(*flags, source=numbered).status == 0
    check(target, numbered)


def write_large(path: Path, count: int) -> None:
    """Write latents of 128 KiB, in row groups of 100 rows."""
    rng = np.random.default_rng(3)
    schema = pa.schema({"task": pa.string(), "hidden_state": pa.list_(pa.list_(pa.float32()))})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 100):
            values = pa.array(rng.standard_normal(100 * 64 * 512, np.float32))
            rows = pa.ListArray.from_arrays(
                pa.array(range(0, len(values) + 1, 512), pa.int32()), values
            )
            latents = pa.ListArray.from_arrays(pa.array(range(0, 6401, 64), pa.int32()), rows)
            tasks = pa.array([f"Task {start + i}" for i in range(100)])
            writer.write_table(pa.table([tasks, latents], schema=schema))


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    runs = []
    for count in (600, 1600):
        # 79 MB and 210 MB of latents.
        source = tmp_path / f"{count}.parquet"
        write_large(source, count)
        runs.append([str(source), "-o", str(tmp_path / str(count)), "--compressor", "mean-pool:8"])
    small, large = peaks("from latentwire_batch.compression.command import main", runs)
    assert large.num_bytes - small.num_bytes < 40 << 20, (small.num_bytes, large.num_bytes)
