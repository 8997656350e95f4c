"""Changes to the logits that a request names itself, as the APIs of OpenAI and vLLM define them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class LogitBias:
    """Adds a number to the logits of some tokens.

    Args:
        bias: pairs of a token id and the number to add.
    """

    def __init__(self, bias: Sequence[tuple[int, float]]) -> None:
        self._token_ids = torch.tensor([token_id for token_id, _ in bias])
        self._bias = torch.tensor([value for _, value in bias], dtype=torch.float32)

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, `[1, vocab_size]` float32, with the bias added in place."""
        device = scores.device
        scores[0].index_add_(0, self._token_ids.to(device), self._bias.to(device))
        return scores


class CountPenalty:
    """Lowers the logits of the tokens that the plan holds already; the prompt does not count.

    Args:
        presence: subtracted once for each token of the plan.
        frequency: subtracted for each occurrence.
        num_prompt: length of the prompt in tokens.
    """

    def __init__(self, presence: float, frequency: float, num_prompt: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._num_prompt = num_prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, `[1, vocab_size]` float32, lowered in place."""
        token_ids, counts = input_ids[0, self._num_prompt :].unique(return_counts=True)
        scores[0, token_ids] -= self._presence + self._frequency * counts
        return scores
