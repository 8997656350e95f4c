"""The reference for latents: one request at a time, the whole sequence in every pass.

It is written with Hugging Face's `inputs_embeds` alone, and knows no slots, no cache and no batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from latentwire_service.engine.prompt import Prompt
from support.engine.device import DEVICE, DTYPE
from support.engine.parity import Rows
from support.tiny_models import EOS, HIDDEN_SIZE, Generated

Bridge = Callable[[torch.Tensor], torch.Tensor]


def random_latent(num_rows: int, seed: int = 0, width: int = HIDDEN_SIZE) -> Rows:
    """Rows about as large as the embeddings of the tiny models, `[num_rows, width]`."""
    rng = np.random.default_rng(seed)
    return (0.6 * rng.standard_normal((num_rows, width))).astype(np.float32)


@torch.inference_mode()
def embedded(model: Any, prompt: Prompt) -> torch.Tensor:
    """What the model gets for a prompt, `[1, P, embedding_size]`."""
    token_ids = torch.tensor([prompt.token_ids], device=DEVICE)
    rows: torch.Tensor = model.get_input_embeddings()(token_ids).clone()
    for span in prompt.embeddings:
        rows[0, span.start : span.end] = torch.tensor(span.rows).to(rows)
    return rows


@torch.inference_mode()
def reference(
    model: Any,
    prompt: Prompt,
    max_new_tokens: int,
    latent_steps: int = 0,
    bridge: Bridge = lambda rows: rows,
) -> Generated:
    """Greedy generation by whole passes: rows of the latent steps first, then one per token."""
    inputs = embedded(model, prompt)
    rows: list[torch.Tensor] = []
    token_ids: list[int] = []
    while len(token_ids) < max_new_tokens or len(rows) < latent_steps:
        output = model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        row = output.hidden_states[-1][:, -1].float()
        rows.append(row)
        if len(rows) <= latent_steps:
            following = bridge(row)
        else:
            token_ids.append(int(output.logits[0, -1].argmax()))
            if token_ids[-1] == EOS:
                break
            following = model.get_input_embeddings()(torch.tensor(token_ids[-1:], device=DEVICE))
        inputs = torch.cat([inputs, following[None].to(DEVICE, DTYPE)], dim=1)
    return Generated(token_ids, torch.cat(rows).cpu().numpy())
