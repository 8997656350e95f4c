"""The bridge that the repository ships for the demo model."""

from __future__ import annotations

from pathlib import Path

from latentwire_service.bridges.directory import check_bridge
from latentwire_service.bridges.manifest import read_manifest

FOLDER = Path(__file__).parents[3] / "examples" / "bridges" / "demo"


def test_it_is_whole_and_small() -> None:
    check_bridge(FOLDER)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12_000_000
    assert sorted(file.name for file in FOLDER.iterdir()) == [
        "README.md",
        "bridge.json",
        "bridge.safetensors",
    ]


def test_its_scores_say_that_it_carries_plans() -> None:
    scores = read_manifest(FOLDER).scores["held_out"]
    assert scores["matched"] < scores["none"] - 1
    assert scores["matched"] < scores["other"] - 1
    assert f"{scores['matched']:.2f}" in (FOLDER / "README.md").read_text(encoding="utf-8")
