from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from latentwire_batch.shards.merge_command import main
from support.batch.collecting import Ended, WatchedStream

Merge = Callable[..., Ended]


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.fixture
def merge(output: Path, merged: Path) -> Merge:
    """Run `latentwire merge` on the shards in `output`, or on others."""

    def run(*args: str, sources: tuple[Path, ...] = (output,), target: Path = merged) -> Ended:
        stderr = WatchedStream()
        with redirect_stderr(stderr):
            status = main([*map(str, sources), "-o", str(target), *args])
        return Ended(status, stderr.getvalue())

    return run
