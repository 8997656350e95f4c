"""`latentwire serve --bridge`: the bridges that a service lists, and those that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from latentwire_service.__main__ import main
from latentwire_service.bridges.manifest import Target
from latentwire_service.engine.errors import ModelError
from latentwire_service.local_backend import LocalBackend
from latentwire_service.settings import Settings
from support.bridge_folders import edit_manifest, manifest, save
from support.live_server import LiveServer
from support.tiny_models import save_model
from support.tiny_shape import HIDDEN_SIZE


def test_info_lists_the_bridges(tmp_path: Path, start: Callable[..., LiveServer]) -> None:
    live = start(bridge=(save(tmp_path / "mine", manifest("mlp")),)).wait_ready()
    listed = httpx.get(f"{live.url}/info").json()["bridges"]
    assert [each["name"] for each in listed] == ["embeddings", "norm", "weights", "mine"]
    assert listed[2]["source"] == {
        **{"model": "tiny", "revision": None, "hidden_size": HIDDEN_SIZE},
        **{"layer": "last", "normed": True},
    }
    assert listed[3]["kind"] == "mlp"
    assert listed[3]["prompt"] == {"before": "Repeat: ", "after": "."}
    assert [each["is_step_bridge"] for each in listed] == [True, True, True, False]
    assert all(len(each["content_hash"]) == 64 for each in listed)


def test_a_bad_bridge_ends_the_command_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "mine", manifest("mlp"))
    edit_manifest(folder, version=7)
    status = main(["--model", str(tmp_path / "no-model"), "--bridge", str(folder)])
    assert status == 2
    assert capsys.readouterr().err.splitlines() == [
        "latentwire serve: --bridge: bridge mine: bridge.json has version 7",
        "This release of latentwire reads version 1.",
    ]


def test_two_bridges_of_one_name_end_the_command_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save(tmp_path / part / "mine", manifest("mlp")) for part in ("a", "b")]
    flags = [flag for folder in folders for flag in ("--bridge", str(folder))]
    assert main(["--model", str(tmp_path / "no-model"), *flags]) == 2
    assert "--bridge: two bridges have the name mine" in capsys.readouterr().err


def test_a_bridge_of_another_width_is_a_bad_model(tmp_path: Path) -> None:
    other = manifest("ridge", receiver=Target(hidden_size=HIDDEN_SIZE + 1))
    settings = Settings(
        model=str(save_model(tmp_path / "tiny")), bridge=(save(tmp_path / "b", other),)
    )
    backend = LocalBackend(settings, lambda _: None, lambda _: None)
    with pytest.raises(ModelError, match="tiny reads width 48"):
        backend.load()
