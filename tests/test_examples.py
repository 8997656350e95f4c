from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from latentwire_service.bridges.manifest import Source
from latentwire_service.settings import Settings
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica
from support.tiny_shape import HIDDEN_SIZE

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    from latentwire_batch.__main__ import main

    with StubReplica(Behaviour(hidden_size=6)) as stub:
        args = ["--dataset", str(EXAMPLES / "tasks.jsonl"), "--output-dir", str(tmp_path / "out")]
        flags = ["--replica", stub.base_url, "--max-new-tokens", "20", "--seed", "1"]
        assert main([*args, *flags]) == 0
    return tmp_path / "out"


@pytest.fixture
def train_probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train_probe")


def test_the_probe_trains_on_latents_of_different_lengths(
    made: Path, train_probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    train_probe.main(made)
    lines = capsys.readouterr().out.splitlines()
    errors = [float(line.split()[3]) for line in lines if line.startswith("epoch")]
    assert len(errors) == 4
    assert "on 4 latents" in lines[-1]
    assert all(np.isfinite(errors))


def test_padding_is_zero_and_outside_of_the_loss(train_probe: ModuleType) -> None:
    rows = [{"hidden_state": np.full((n, 2), n, dtype=np.float32)} for n in (1, 3, 2)]
    states, progress, mask = train_probe.collate(rows)
    assert states.shape == (3, 3, 2)
    assert mask.sum(dim=1).tolist() == [1, 3, 2]
    assert states[~mask].abs().max() == 0
    assert progress.tolist() == [[0, 0, 0], [0, 0.5, 1], [0, 1, 0]]

    def probe(states: torch.Tensor) -> torch.Tensor:
        return states.sum(dim=-1, keepdim=True) * 0 + 1

    # Errors of the hidden rows: 1; 1, 0.25, 0; 1, 0. Padding would add three errors of 1.
    batch = (states, progress, mask)
    assert train_probe.masked_loss(probe, batch).item() == pytest.approx(3.25 / 6)


@pytest.mark.slow
def test_two_agents_print_what_the_actor_reads_in_each_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.backends import BACKENDS, Faults
    from support.bridge_folders import manifest, save
    from support.live_server import LiveServer
    from support.tiny_models import save_chat_model

    monkeypatch.syspath_prepend(str(EXAMPLES))
    two_agents = importlib.import_module("two_agents")
    described = manifest("mlp", HIDDEN_SIZE, source=Source(model="tiny", hidden_size=HIDDEN_SIZE))
    settings = Settings(
        model=str(save_chat_model(tmp_path / "tiny")),
        max_slots=4,
        bridge=(save(tmp_path / "mine", described),),
    )
    live = LiveServer(settings, BACKENDS["local"], Faults()).wait_ready()
    monkeypatch.setattr(
        "sys.argv",
        ["two_agents.py", "--actor", live.url, "--num-tasks", "2", "--max-new-tokens", "4"],
    )
    two_agents.main()
    live.close()
    out = capsys.readouterr().out
    names = ("the latent", "the text", "nothing", "another task's latent")
    assert [out.count(f"The actor, given {name} (") for name in names] == [2, 2, 2, 2]
    means = dict(re.findall(r"^  (.+?)  +(\d+\.\d\d)$", out, re.MULTILINE))
    assert tuple(means) == names
    assert float(means["the latent"]) > 0


def test_a_map_of_ones_own_and_the_command_compress_alike(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    compress = importlib.import_module("compress")
    compress.main(made, tmp_path / "new")
    out = capfd.readouterr().out
    counts = re.fullmatch(r"equal: 16 rows, (\d+) hidden rows as (\d+)", out.splitlines()[-1])
    assert counts is not None
    assert 16 <= int(counts[2]) < int(counts[1])
    # The comparison can fail.
    monkeypatch.setattr(compress, "mean_pool", _first_rows)
    with pytest.raises(AssertionError):
        compress.main(made, tmp_path / "other")


def _first_rows(row: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_state_comp": row["hidden_state"][:8]}
