"""`latentwire evaluate --compressor` without a bridge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire_batch.evaluation.command import main
from support.batch.evaluating import Compare, Compared


@pytest.fixture
def compare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Compare:
    """Run `latentwire evaluate` on a dataset with these compressors."""

    def run(dataset: Path, compressors: list[str], *flags: str) -> Compared:
        chosen = [part for name in compressors for part in ("--compressor", name)]
        path = tmp_path / "compared.json"
        capfd.readouterr()
        status = main([str(dataset), *chosen, "--json", str(path), *flags])
        out, err = capfd.readouterr()
        return Compared(status, out, err, json.loads(path.read_text()) if path.exists() else {})

    return run
