"""The lowest seam: a runner without a model, whose every output follows from what it was fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from latentwire_service.engine.runner import PromptPart, StepEmbeddings, StepOutput

VOCAB_SIZE = 50
HIDDEN_SIZE = 4
EMBEDDING_SIZE = 4


def count_up(history: Sequence[int]) -> int:
    return (history[-1] + 1) % VOCAB_SIZE


def hidden_row(token_id: int, position: int) -> list[float]:
    return [float(token_id), float(position), float(token_id * position), 1.0]


class FakeModelRunner:
    """Greedily, each slot's next token is `next_token(all tokens fed to it)`.

    An embedding is read as the token that its first value names.

    Args:
        before_step: called at the start of each pass; may block on an event, or raise.
        poison: a slot that is fed this token holds NaN from then on, until it is cleared.
    """

    def __init__(
        self,
        max_slots: int = 2,
        max_model_len: int = 64,
        next_token: Callable[[Sequence[int]], int] = count_up,
        before_step: Callable[[], None] = lambda: None,
        poison: int | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self.hidden_size = HIDDEN_SIZE
        self.embedding_size = EMBEDDING_SIZE
        self.max_slots = max_slots
        self.max_model_len = max_model_len
        self.max_outputs = 8
        self.histories: list[list[int]] = [[] for _ in range(max_slots)]
        self.is_poisoned = [False] * max_slots
        self.prefixes: dict[int, list[int]] = {}
        self._next_token = next_token
        self._before_step = before_step
        self._poison = poison

    def prefill(self, parts: Sequence[PromptPart]) -> StepOutput:
        self._before_step()
        for part in parts:
            del self.histories[part.slot][part.start :]
            tokens = list(part.prompt.token_ids)
            for span in part.prompt.embeddings:
                tokens[span.start : span.end] = [int(row[0]) for row in span.rows]
            self._feed(part.slot, tokens, part.start)
        ends = [
            (part.slot, part.start + len(part.prompt) - back)
            for part in parts
            for back in reversed(range(part.num_outputs))
        ]
        return self._output_at(ends)

    def decode(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        embeddings: StepEmbeddings | None = None,
    ) -> StepOutput:
        self._before_step()
        if embeddings is not None:
            assert embeddings.rows.shape == (len(token_ids), EMBEDDING_SIZE)
            used = embeddings.is_used.numpy()
            token_ids = np.where(used, embeddings.rows[:, 0].numpy(), token_ids).astype(np.int64)
        for slot, (token_id, position) in enumerate(zip(token_ids, positions, strict=True)):
            if position != self.max_model_len:
                self._feed(slot, [int(token_id)], int(position))
        return self._output(range(len(token_ids)))

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        self.histories[target] = self.histories[source][:num_tokens]
        self.is_poisoned[target] = self.is_poisoned[source]

    def clear_slot(self, slot: int) -> None:
        self.histories[slot] = []
        self.is_poisoned[slot] = False

    def keep_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        assert not self.is_poisoned[slot]
        self.prefixes[prefix_id] = self.histories[slot][:num_tokens]

    def load_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        self.histories[slot] = self.prefixes[prefix_id][:num_tokens]

    def drop_prefix(self, prefix_id: int) -> None:
        del self.prefixes[prefix_id]

    def _feed(self, slot: int, token_ids: Sequence[int], start: int) -> None:
        assert len(self.histories[slot]) == start, "a position was skipped or written twice"
        self.histories[slot] += token_ids
        if self._poison in token_ids:
            self.is_poisoned[slot] = True

    def _output(self, slots: Sequence[int]) -> StepOutput:
        return self._output_at([(slot, len(self.histories[slot])) for slot in slots])

    def _output_at(self, ends: Sequence[tuple[int, int]]) -> StepOutput:
        """What the first positions of slots give, each pair a slot and their number."""
        logits = torch.zeros(len(ends), VOCAB_SIZE)
        hidden = torch.zeros(len(ends), HIDDEN_SIZE)
        for row, (slot, end) in enumerate(ends):
            history = self.histories[slot][:end]
            if not history:
                continue
            logits[row, self._next_token(history)] = 10.0
            hidden[row] = torch.tensor(hidden_row(history[-1], len(history) - 1))
            if self.is_poisoned[slot]:
                hidden[row] = torch.nan
        return StepOutput(logits=logits, hidden=hidden)
