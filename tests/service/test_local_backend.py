"""From settings and a model to a plan of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentwire_service import local_backend
from latentwire_service.engine.hf.cpu.linear import can_pack
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.hf.probe import probe
from latentwire_service.engine.prefix_cache import MAX_PREFIX_TOKENS
from latentwire_service.settings import Settings
from support.tiny_models import qwen2_config, save_model
from support.tiny_shape import HIDDEN_SIZE, VOCAB_SIZE


def test_memory_that_is_taken_later_is_not_in_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = 2**30
    monkeypatch.setattr(local_backend, "available_bytes", lambda _device: available)
    folder = save_model(tmp_path / "tied", qwen2_config(num_hidden_layers=3))
    settings = Settings(model=str(folder), memory_fraction=0.5, dtype="fp32", device="cpu")
    device = torch.device("cpu")
    loaded = load_model(str(folder), device=device, dtype=torch.float32, cache_dir=tmp_path)
    capacity = local_backend.plan_slots(settings, loaded, probe(loaded.model))
    # Keys and values of 3 layers, 2 heads of 8 each; the LM head is the embeddings, and packed.
    prefixes = MAX_PREFIX_TOKENS * 3 * 2 * 2 * 8 * 4
    head = VOCAB_SIZE * HIDDEN_SIZE * 4 if can_pack(torch.zeros(1)) else 0
    assert capacity.budget_bytes == (available - prefixes - head) // 2
