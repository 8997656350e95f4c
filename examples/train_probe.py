"""Train a probe on latents of different lengths: `python examples/train_probe.py OUTPUT_DIR`.

The probe reads one hidden row and predicts how far the plan has come: 0 at its first token, 1 at
its last. The latents of a batch are padded to the longest one, and a mask keeps the padding out of
the loss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

_EPOCHS = 60
_BATCH_ROWS = 8
_HELD_OUT_EVERY = 4


def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad the latents of a batch.

    Args:
        rows: of the dataset in numpy format.

    Returns:
        `[B, T, H]` float32, zero where padded; `[B, T]` float32, how far the plan has come;
        `[B, T]` bool, True for hidden rows and False for padding. T is the longest latent's length.
    """
    latents = [torch.from_numpy(np.stack(row["hidden_state"])) for row in rows]
    lengths = torch.tensor([len(latent) for latent in latents])
    states = nn.utils.rnn.pad_sequence(latents, batch_first=True)
    steps = torch.arange(states.shape[1]).expand(len(latents), -1)
    mask = steps < lengths[:, None]
    progress = steps / (lengths[:, None] - 1).clamp(min=1)
    return states, progress * mask, mask


def masked_loss(
    probe: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return the mean squared error over the hidden rows of a batch, a scalar."""
    states, progress, mask = batch
    predicted: torch.Tensor = probe(states).squeeze(-1)
    return ((predicted - progress) ** 2 * mask).sum() / mask.sum()


def main(output_dir: Path) -> None:
    """Train on three quarters of the rows, and report the error on the others."""
    torch.manual_seed(0)
    dataset = load_from_disk(str(output_dir / "hf_dataset"))
    dataset = dataset.select_columns(["hidden_state"]).with_format("numpy")
    held_out = [i for i in range(len(dataset)) if i % _HELD_OUT_EVERY == 0]
    training = [i for i in range(len(dataset)) if i % _HELD_OUT_EVERY]
    if not training:
        sys.exit("the dataset has too few rows")
    loader = DataLoader(
        dataset.select(training), batch_size=_BATCH_ROWS, shuffle=True, collate_fn=collate
    )
    test = collate(list(dataset.select(held_out)))

    width = test[0].shape[-1]
    probe = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    console = Console()
    for epoch in range(_EPOCHS):
        for batch in loader:
            loss = masked_loss(probe, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 20 == 0 or epoch == _EPOCHS - 1:
            with torch.no_grad():
                error = masked_loss(probe, test).sqrt().item()
            console.print(f"epoch {epoch + 1}: error {error:.3f} on {len(held_out)} latents")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "hf_dataset").is_dir():
        sys.exit(
            "usage: python examples/train_probe.py OUTPUT_DIR, a directory of latentwire collect"
        )
    main(Path(sys.argv[1]))
