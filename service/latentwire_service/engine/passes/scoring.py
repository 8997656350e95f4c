"""The likelihood of given tokens: from passes over many positions, their rows and logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.runner import StepOutput


@dataclass(frozen=True, slots=True)
class Scores:
    """What a pass gives for N given tokens, on the host.

    Attributes:
        token_logprobs: `[N]`, natural logarithms of the probabilities that the model itself gives
            the tokens: at temperature 1, without filters, penalties and biases.
        rows: `[N, hidden_size]` float32; row i predicts token i.
        is_valid: `[N]`, whether the row and the logarithm are finite.
    """

    token_logprobs: Sequence[float]
    rows: npt.NDArray[np.float32]
    is_valid: Sequence[bool]

    def part(self, start: int, end: int) -> Scores:
        """Return those of tokens ``start..end-1``."""
        return Scores(
            self.token_logprobs[start:end], self.rows[start:end], self.is_valid[start:end]
        )


@torch.inference_mode()
def score(output: StepOutput, indices: Sequence[int], token_ids: Sequence[int]) -> Scores:
    """Score given tokens.

    Args:
        output: of a pass.
        indices: `[N]`, the row of the output that predicts each token.
        token_ids: `[N]`, the tokens.
    """
    logits, hidden = output.logits, output.hidden
    index = torch.tensor(indices, device=logits.device)
    targets = torch.tensor(token_ids, device=logits.device)
    if len(indices) != len(logits):
        logits, hidden = logits[index], hidden[index]
    logits = logits.float()
    logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    is_valid = torch.isfinite(hidden).all(dim=-1) & torch.isfinite(logprobs)
    rows: npt.NDArray[np.float32] = hidden.to("cpu", torch.float32).numpy()
    return Scores(logprobs.tolist(), rows, is_valid.tolist())
