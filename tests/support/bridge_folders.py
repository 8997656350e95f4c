"""Bridge directories for tests, valid or broken in one way, and a dataset to fit one to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.directory import make_module, save_bridge
from latentwire_service.bridges.manifest import Config, Kind, Manifest, Prompt, Source, Target
from latentwire_service.engine.hf.loader import LoadedModel
from support.tiny_models import build_model, build_tokenizer, llama_config
from support.tiny_shape import EOS, HIDDEN_SIZE

SENDER_WIDTH = 24
CPU = torch.device("cpu")
WORDS = ["alpha", "bravo", "crane", "delta", "eagle", "foxes", "grape", "hotel"]


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


def loaded_model() -> LoadedModel:
    model = build_model(llama_config(), 0, CPU, torch.float32)
    tokenizer = build_tokenizer()
    return LoadedModel(model.requires_grad_(False), tokenizer, "tiny", None, frozenset({EOS}), 512)


def write_dataset(
    path: Path, num_rows: int = 40, width: int = HIDDEN_SIZE, model: str | None = "tiny"
) -> Path:
    """Latents that hold the embedding of each token under an invertible linear map, and noise."""
    draw = np.random.default_rng(0)
    loaded = loaded_model()
    embed = loaded.model.get_input_embeddings().weight.detach().numpy()
    mixing = draw.normal(size=(HIDDEN_SIZE, width)) / HIDDEN_SIZE**0.5
    ids, plans, latents = [], [], []
    for _ in range(num_rows):
        plan = " ".join(draw.choice(WORDS, size=3))
        tokens = loaded.tokenizer.encode(plan, add_special_tokens=False)
        rows = embed[tokens] @ mixing + draw.normal(size=(len(tokens), width)) * 0.01
        ids.append(tokens)
        plans.append(plan)
        latents.append(rows.astype(np.float32).tolist())
    table = pa.table(
        {
            "task": pa.array([f"task {index}" for index in range(num_rows)]),
            "task_id": pa.array([str(index) for index in range(num_rows)]),
            "plan": pa.array(plans),
            "hidden_state": pa.array(latents, pa.list_(pa.list_(pa.float32()))),
            "token_ids": pa.array(ids, pa.list_(pa.int32())),
        }
    )
    declared = {"model": {"model": model, "revision": None}, "latent": {"layer": "last"}}
    table = table.replace_schema_metadata({"latentwire": json.dumps(declared)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path
