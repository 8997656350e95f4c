"""Bridge directories for tests: small, valid, and then broken in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.directory import make_module, save_bridge
from latentwire_service.bridges.manifest import Config, Kind, Manifest, Prompt, Source, Target
from support.tiny_models import build_model, llama_config
from support.tiny_shape import HIDDEN_SIZE

SENDER_WIDTH = 24


def receiver(**changes: Any) -> Receiver:
    """A tiny model that reads bridges."""
    model = build_model(llama_config(**changes), 0, torch.device("cpu"), torch.float32)
    return Receiver(model.requires_grad_(False), "tiny")


def manifest(kind: Kind, source_width: int = SENDER_WIDTH, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": kind,
        "source": Source(model="sender", hidden_size=source_width),
        "receiver": Target(model="tiny", hidden_size=HIDDEN_SIZE),
        "config": Config(intermediate_size=32 if kind == "mlp" else None, num_heads=8),
        "prompt": Prompt(before="Repeat: ", after="."),
    }
    return Manifest(**(values | changes))


def random_state(described: Manifest, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for every tensor of a bridge."""
    generator = torch.Generator().manual_seed(seed)
    state = make_module(described).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 + 0.1
        for name, tensor in state.items()
    }


def save(folder: Path, described: Manifest, **changes: Any) -> Path:
    """Write a bridge directory with random values."""
    save_bridge(folder, described, random_state(described), "# Card\n", **changes)
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change values of `bridge.json`."""
    path = folder / "bridge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def published_state(width: int = HIDDEN_SIZE, source_width: int | None = None) -> dict[str, Any]:
    """What Interlat stores in `hidden_mha_state.pt`."""
    described = manifest("interlat", source_width or width)
    state: dict[str, Any] = {"scale": 0.2, "output_scale": 0.1}
    for name, tensor in random_state(described).items():
        part, _, rest = name.partition(".")
        state.setdefault(part, {})[rest] = tensor
    return state
