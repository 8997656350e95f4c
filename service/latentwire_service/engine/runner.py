"""The engine's lowest seam: forward passes over slots, as a protocol and its plain values.

`engine.hf` implements it over Hugging Face transformers; tests implement it without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.prompt import Prompt


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A chunk of one prompt, to be written to a slot from position `start` on.

    Attributes:
        num_outputs: the number of its last positions whose output is needed.
    """

    slot: int
    prompt: Prompt
    start: int
    num_outputs: int = 1


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a forward pass gives for B positions, on the model's device.

    Attributes:
        logits: `[B, vocab_size]`, compute dtype.
        hidden: `[B, hidden_size]`, compute dtype, after the final norm.
    """

    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepEmbeddings:
    """The inputs of a decode step that are not tokens.

    Attributes:
        rows: `[B, embedding_size]` float32 on the model's device, finite.
        is_used: `[B]` bool on the model's device, which rows are read.
    """

    rows: torch.Tensor
    is_used: torch.Tensor


class ModelRunner(Protocol):
    """What the engine needs of a model."""

    @property
    def device(self) -> torch.device:
        """Where outputs live."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width H of a hidden row."""
        ...

    @property
    def embedding_size(self) -> int:
        """Width of an input embedding."""
        ...

    @property
    def max_slots(self) -> int:
        """Sequences in the KV cache at once."""
        ...

    @property
    def max_model_len(self) -> int:
        """Positions of one sequence."""
        ...

    @property
    def max_outputs(self) -> int:
        """Most positions of a prefill whose output memory is set aside for, when parts have many.

        Each part counts with the largest `num_outputs` of all.
        """
        ...

    def prefill(self, parts: Sequence[PromptPart]) -> StepOutput:
        """Run prompt chunks together; the output rows of each part follow those of the last."""
        ...

    def decode(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        embeddings: StepEmbeddings | None = None,
    ) -> StepOutput:
        """Run one input of each slot ``0..B-1``; a row at position `max_model_len` stays idle.

        With embeddings, some rows get these in place of the embedding of their token.
        """
        ...

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of one slot to another."""
        ...

    def clear_slot(self, slot: int) -> None:
        """Zero a slot whose content may be invalid."""
        ...

    def keep_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Keep a copy of the first `num_tokens` positions of a slot under a number."""
        ...

    def load_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of a kept prefix to a slot."""
        ...

    def drop_prefix(self, prefix_id: int) -> None:
        """Free a kept prefix."""
        ...
