"""What `latentwire evaluate` refuses: one line that names the flag, and exit status 2 or 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.protocol import InfoResponse
from latentwire_batch.errors import UsageError
from latentwire_batch.evaluation.bridge_files import choose_bridge
from latentwire_batch.evaluation.receiver import find_bridge
from latentwire_service.bridges.directory import load_bridge
from support.batch.collecting import Ended
from support.batch.evaluating import DECLARED, latents, write_dataset
from support.bridge_folders import edit_manifest, manifest, receiver, save
from support.live_server import LiveServer
from support.tiny_shape import HIDDEN_SIZE


def refused(done: Ended, text: str, status: int = 2) -> None:
    lines = done.stderr.splitlines()
    assert done.status == status, done.stderr
    assert lines[-1].startswith("latentwire evaluate: "), done.stderr
    assert text in lines[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["nowhere"], "DATASET: no such file or directory"),
        (["--bridge", "nowhere"], "--bridge: there is no such directory, and no built-in bridge"),
        (["--bridge", __file__], "--bridge: is a file, not the directory of a bridge"),
        (["--bridge", ""], "--bridge: must not be empty"),
        (["--url", "nonsense"], "--url: must be like http://127.0.0.1:8000"),
        (["--url", "ftp://127.0.0.1"], "--url: must be like http://127.0.0.1:8000"),
        (["--limit", "0"], "--limit: must be at least 1"),
        (["--limit", "1"], "DATASET: 1 of 5 tasks are to be scored, and 2 are the fewest"),
        (["--held-out", "0"], "--held-out: must be above 0"),
        (["--held-out", "1.5"], "--held-out: must be at most 1"),
        (["--seed", "-1"], "--seed: must be at least 0"),
        (["--concurrency", "0"], "--concurrency: must be at least 1"),
        (["--json", "no-folder/out.json"], "--json-file: there is no directory"),
        (["--html", "no-folder/out.html"], "--html: there is no directory"),
        (["--html", "."], "--html: is a directory"),
        (["--answers", "answer"], "--answers: the dataset has no column answer"),
        (["--answers", "a", "--answers-file", "no"], "--answers-file: no such file or folder"),
        (["--api-key", "k", "--api-key-file", "no"], "give one of them"),
        (["--bridge", "weights"], "DATASET: model of its latents is sender"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_flags_are_named(evaluate: Any, flags: list[str], text: str) -> None:
    refused(evaluate(*flags), text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"model": "another"}}, "model of its latents is another"),
        ({"latent": {"layer": "first", "normed": True}}, "layer of its latents is first"),
        ({"latent": {"layer": "last", "normed": False}}, "normed of its latents is False"),
    ],
)
def test_latents_of_another_kind_are_refused_with_both_values(
    evaluate: Any, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    other = write_dataset(tmp_path / "d.parquet", latents(3), {**DECLARED, **changes})
    refused(evaluate(str(other)), text)


def test_latents_of_another_width_are_refused(evaluate: Any, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "d.parquet", latents(3, 7))
    refused(evaluate(str(other)), "hidden_size of its latents is 7, and the bridge was made for 24")


@pytest.mark.parametrize("fault", ["no plan", "no rows", "nan", "one task"])
def test_a_dataset_without_usable_tasks_is_refused(
    evaluate: Any, tmp_path: Path, fault: str
) -> None:
    rows = latents(3)
    columns: dict[str, list[Any]] = {}
    if fault == "no plan":
        columns["plan"] = [""] * 3
    elif fault == "one task":
        columns["task_id"] = ["t"] * 3
    else:
        value = np.full((2, 24), np.nan, np.float32)
        rows = [value if fault == "nan" else value[:0]] * 3
    other = write_dataset(tmp_path / "d.parquet", rows, DECLARED, **columns)
    text = "one task_id" if fault == "one task" else "has a plan and a finite latent"
    refused(evaluate(str(other)), text)


def test_a_file_that_is_no_dataset_is_refused(evaluate: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1nonsense")
    refused(evaluate(str(path)), "DATASET: cannot be")


def test_a_bridge_with_another_content_is_refused(
    evaluate: Any, bridge: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "mine"
    shutil.copytree(bridge, copied)
    raw = bytearray((copied / "bridge.safetensors").read_bytes())
    raw[-1] ^= 1
    (copied / "bridge.safetensors").write_bytes(raw)
    refused(evaluate("--bridge", str(copied)), "has loaded a bridge mine with another content")


def test_a_bridge_is_found_by_its_content_under_another_name(
    evaluate: Any, bridge: Path, tmp_path: Path
) -> None:
    shutil.copytree(bridge, tmp_path / "copy")
    done = evaluate("--bridge", str(tmp_path / "copy"), "--json", str(tmp_path / "out.json"))
    assert done.status == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["bridge"]["name"] == "mine"


def test_a_bridge_that_is_not_loaded_is_refused(evaluate: Any, tmp_path: Path) -> None:
    other = save(tmp_path / "other", manifest("mlp"))
    text = "the service has not loaded other; it has: embeddings, norm, weights, mine"
    refused(evaluate("--bridge", str(other)), text)


def damage(folder: Path, fault: str) -> None:
    tensors = folder / "bridge.safetensors"
    match fault:
        case "version":
            edit_manifest(folder, version=7)
        case "no JSON":
            (folder / "bridge.json").write_text("{")
        case "a list":
            (folder / "bridge.json").write_text("[1]")
        case "no manifest":
            (folder / "bridge.json").unlink()
        case "large manifest":
            (folder / "bridge.json").write_text(" " * (2 << 20))
        case "no tensors":
            tensors.unlink()
        case "cut tensors":
            tensors.write_bytes(tensors.read_bytes()[:-8])
        case "long header":
            tensors.write_bytes(b"\xff" * 8 + tensors.read_bytes()[8:])
        case "empty tensors":
            tensors.write_bytes(b"")


@pytest.mark.parametrize(
    "fault",
    [
        *("version", "no JSON", "a list", "no manifest", "large manifest", "no tensors"),
        *("cut tensors", "long header", "empty tensors"),
    ],
)
def test_a_damaged_bridge_is_refused(evaluate: Any, tmp_path: Path, fault: str) -> None:
    folder = save(tmp_path / "b", manifest("ridge"))
    damage(folder, fault)
    done = evaluate("--bridge", str(folder))
    refused(done, "--bridge: bridge.")
    assert str(tmp_path) not in done.stderr


def test_a_service_that_is_none_is_refused(evaluate: Any, stub: Any) -> None:
    refused(
        evaluate("--url", "http://127.0.0.1:9", "--ready-timeout", "0.6"),
        "the service was not ready within 0.6 s",
        status=1,
    )
    refused(evaluate("--url", stub.base_url), "the service cannot be evaluated: its engine has no")


def test_a_key_that_is_wrong_is_named(model: Path, bridge: Path, evaluate: Any) -> None:
    from latentwire_service.settings import Settings

    live = LiveServer(Settings(model=str(model), api_key=("secret",), bridge=(bridge,)))
    try:
        live.wait_ready()
        refused(evaluate("--url", live.url), "--api-key: the service rejected the key")
        assert evaluate("--url", live.url, "--api-key", "secret").status == 0
    finally:
        live.close()


@pytest.mark.parametrize("kind", ["ridge", "mlp", "interlat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_content_hash_is_the_services(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    folder = save(tmp_path / "b", manifest(kind), dtype=dtype)
    expected = load_bridge(folder, receiver()).content_hash
    assert choose_bridge(str(folder)).content_hash == expected
    # Values that a hand-written file leaves out are the defaults.
    described = json.loads((folder / "bridge.json").read_text())
    del described["source"]["layer"], described["receiver"]["revision"], described["scores"]
    (folder / "bridge.json").write_text(json.dumps(described))
    assert choose_bridge(str(folder)).content_hash == expected


def test_an_engine_that_cannot_score_is_refused(server: LiveServer, bridge: Path) -> None:
    info = InfoResponse.model_validate_json(server.http.get("/info").content)
    for lacking in ("scoring", "latents-in"):
        left = [name for name in info.capabilities if name != lacking]
        with pytest.raises(UsageError, match=f"its engine has no {lacking}"):
            find_bridge(info.model_copy(update={"capabilities": left}), choose_bridge(str(bridge)))
    assert info.hidden_size == HIDDEN_SIZE
