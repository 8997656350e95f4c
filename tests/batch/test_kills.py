from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dataset_kills.py"


@pytest.fixture
def kills() -> ModuleType:
    return _loaded(SCRIPT)


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dataset_kills", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_killed_runs_end_with_the_undisturbed_dataset(kills: ModuleType, tmp_path: Path) -> None:
    args = argparse.Namespace(
        kills=8, rows=150, replicas=2, seed=4, delay=0.05, longest=1.4, model=None
    )
    found = kills.run(args, tmp_path)
    assert found["equal"]
    assert found["kills"] == 8
    assert sum(found.get(target, 0) for target in kills.TARGETS) == 8
