from __future__ import annotations

from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

from latentwire_batch.compression.command import main
from support.batch.collecting import Ended, WatchedStream
from support.batch.evaluating import write_dataset
from support.batch.stored import Compress, Rows


@pytest.fixture
def rows() -> list[Rows]:
    """Latents of width 6: most are longer than 4 rows, some shorter, one is empty."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((length, 6), np.float32) for length in (9, 3, 0, 5, 12, 1, 4, 7)]


@pytest.fixture
def dataset(tmp_path: Path, rows: list[Rows]) -> Path:
    return write_dataset(tmp_path / "in.parquet", rows)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "compressed"


@pytest.fixture
def compress(dataset: Path, target: Path) -> Compress:
    """Run `latentwire compress` on `dataset` into `target`."""

    def run(*flags: str, source: Path = dataset, output: Path = target) -> Ended:
        stderr = WatchedStream()
        with redirect_stderr(stderr):
            status = main([str(source), "-o", str(output), *flags])
        return Ended(status, stderr.getvalue())

    return run
