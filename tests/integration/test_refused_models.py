"""A model that cannot be served, through the process: one line, exit status 2, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.processes.refused_services import serve_each
from support.tiny_gguf import write_gguf
from support.tiny_models import build_model, qwen2_config, save_model

pytestmark = pytest.mark.slow


def without_a_weight(folder: Path) -> Path:
    file = save_model(folder / "tiny") / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    return file.parent


def an_adapter(folder: Path) -> Path:
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def a_shard_too_few(folder: Path) -> Path:
    pytest.importorskip("gguf")
    model = build_model(qwen2_config(), 0, torch.device("cpu"), torch.float32)
    write_gguf(folder / "tiny.gguf", model, tensors_per_shard=20)
    (folder / "tiny-00002-of-00002.gguf").unlink()
    return folder / "tiny-00001-of-00002.gguf"


def no_model(_: Path) -> str:
    return "some-owner/no-model"


CASES: list[tuple[Callable[[Path], object], str]] = [
    (without_a_weight, "missing from its files: model.layers.1.self_attn.k_proj.weight"),
    (an_adapter, "is an adapter (LORA), not a model: merge it into some/base"),
    (a_shard_too_few, "shards of its model, 1 is missing: tiny-00002-of-00002.gguf"),
    (no_model, "some-owner/no-model cannot be loaded: there is no such directory"),
]


def test_a_model_that_cannot_be_served_ends_the_process_with_one_line(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    command_lines = []
    for make, _ in CASES:
        folder = tmp_path / make.__name__
        folder.mkdir()
        model = str(make(folder))
        command_lines.append(["--model", model, "--port", "0", "--cache-dir", str(cache_dir)])
    outputs = serve_each(command_lines)
    for (_, reason), output in zip(CASES, outputs, strict=True):
        assert "Traceback" not in output
        (line,) = (line for line in output.splitlines() if "cannot serve the model: " in line)
        assert reason in line
        assert len(line) < 400
    assert not list(cache_dir.glob("gguf/*"))
