"""Plain Hugging Face, one sequence at a time, and a ridge bridge's formula in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from support.batch.evaluating import AFTER, BEFORE
from support.tiny_models import build_model, build_tokenizer, llama_config


class Oracle:
    """Plain Hugging Face, one sequence at a time, and the bridge's formula in numpy."""

    def __init__(self, bridge: Path) -> None:
        self.model = build_model(llama_config(), 0, torch.device("cpu"), torch.float32)
        self.tokenizer = build_tokenizer()
        self.tensors = load_file(bridge / "bridge.safetensors")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def embed(self, text: str) -> torch.Tensor:
        embedded: torch.Tensor = self.model.get_input_embeddings()(torch.tensor(self.ids(text)))
        return embedded

    def bridged(self, rows: np.ndarray) -> torch.Tensor:
        centred = rows - self.tensors["mean"]
        following = np.concatenate([centred[1:], np.zeros_like(centred[:1])])
        windows = np.concatenate([centred, following], axis=1)
        mapped = windows @ self.tensors["weight"] + self.tensors["bias"]
        return torch.tensor(mapped * self.tensors["factor"])

    @torch.no_grad()
    def nll(self, message: torch.Tensor, plan: str) -> float:
        """Mean negative log-likelihood of a plan's tokens after a message."""
        plan_ids = self.ids(plan)
        parts = [self.embed(f"[user]{BEFORE}"), message, self.embed(f"{AFTER}[assistant]")]
        inputs = torch.cat([*parts, self.embed(plan)])
        logits = self.model(inputs_embeds=inputs[None]).logits[0, -len(plan_ids) - 1 : -1]
        chosen = torch.log_softmax(logits.double(), -1)[range(len(plan_ids)), plan_ids]
        return -float(chosen.mean())
