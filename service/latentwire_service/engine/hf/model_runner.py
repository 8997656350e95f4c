"""Forward passes over slots. Only this module calls the model.

Hidden rows come from the base model's output, before the LM head: no tuples of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from latentwire_service.engine.hf.decode_step import Step, compiled
from latentwire_service.engine.hf.kv_cache import CacheView, LayerShape, SlotCache
from latentwire_service.engine.runner import PromptPart, StepOutput

# Attention reads whole buckets of this many positions: few distinct shapes, little waste.
KV_BUCKET = 64
# Prompt chunks are padded to whole buckets, too: oneDNN makes and keeps a kernel for each number of
# rows, so prompts of every length would fill its cache with hundreds of megabytes.
PREFILL_BUCKET = 16


class HfModelRunner:
    """Any Hugging Face decoder whose attention goes through the attention interface.

    Args:
        model: a causal LM in eval mode on its device, set to `SLOT_ATTENTION`.
        shapes: keys and values of each layer.
        hidden_size: width H of a hidden row.
        max_slots, max_model_len: size of the KV cache allocated here.
        compile_decode: compile the decode step, and record it as CUDA graphs on a GPU.
        has_few_shapes: decode with a power of two of rows and of buckets of the KV cache, so that
            there are few shapes to record; None: when each shape is recorded.
    """

    def __init__(
        self,
        model: Any,
        shapes: Sequence[LayerShape],
        hidden_size: int,
        max_slots: int,
        max_model_len: int,
        compile_decode: bool,
        has_few_shapes: bool | None = None,
    ) -> None:
        self._model = model
        self._max_slots = max_slots
        self._max_model_len = max_model_len
        self._device: torch.device = model.device
        self._cache = SlotCache(shapes, max_slots, max_model_len, model.dtype, model.device)
        self._hidden_size = hidden_size
        self._slots = torch.arange(max_slots, device=self._device)
        self._prefixes: dict[int, Sequence[torch.Tensor]] = {}
        # The LM classes return logits only, so hooks read the output of the models inside them.
        # Which of those holds the final rows differs (`base_model` may be a shell around it, or the
        # LM class itself), but it is always the last to return.
        self._last_hidden: torch.Tensor | None = None
        for module in model.modules():
            if module is not model and isinstance(module, PreTrainedModel):
                module.register_forward_hook(self._keep_last_hidden)
        if has_few_shapes is None:
            has_few_shapes = compile_decode and self._device.type == "cuda"
        self._has_few_shapes = has_few_shapes
        self._decode_step: Step = compiled(self._run, self._device) if compile_decode else self._run

    def _keep_last_hidden(self, _module: object, _args: object, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            self._last_hidden = hidden

    @property
    def device(self) -> torch.device:
        """Where the model and its outputs live."""
        return self._device

    @property
    def hidden_size(self) -> int:
        """Width H of a hidden row."""
        return self._hidden_size

    @property
    def max_slots(self) -> int:
        """Sequences in the KV cache at once."""
        return self._max_slots

    @property
    def max_model_len(self) -> int:
        """Positions of one sequence."""
        return self._max_model_len

    @torch.inference_mode()
    def prefill(self, parts: Sequence[PromptPart]) -> StepOutput:
        """Run prompt chunks together, padded on the left so that each row ends at the last column.

        Padding writes to the scratch position, which nothing reads.
        """
        width = _round_up(max(len(part.prompt) for part in parts), PREFILL_BUCKET)
        token_ids = np.zeros((len(parts), width), dtype=np.int64)
        positions = np.zeros((len(parts), width), dtype=np.int64)
        write_positions = np.full((len(parts), width), self._cache.scratch_position)
        for row, part in enumerate(parts):
            start = width - len(part.prompt)
            token_ids[row, start:] = part.prompt.token_ids
            positions[row, start:] = np.arange(part.start, part.start + len(part.prompt))
            write_positions[row, start:] = positions[row, start:]
        view = CacheView(
            slots=self._to_device(np.array([part.slot for part in parts])),
            is_dense=False,
            write_positions=self._to_device(write_positions),
            query_positions=self._to_device(positions),
            kv_length=self._kv_bucket(int(positions.max()) + 1),
        )
        return self._run(self._to_device(token_ids), view)

    @torch.inference_mode()
    def decode(
        self, token_ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> StepOutput:
        """Run one token of each slot ``0..B-1``.

        Args:
            token_ids: `[B]`, the tokens to feed.
            positions: `[B]`, where they go; `max_model_len` idles the row (it writes to scratch).

        Returns:
            one row per slot; on a GPU a compiled step overwrites them in the next call.
        """
        num_rows = len(positions)
        num_idle = self._padded_rows(num_rows) - num_rows
        token_ids = np.pad(token_ids, (0, num_idle))
        positions = np.pad(positions, (0, num_idle), constant_values=self._cache.scratch_position)
        is_idle = positions == self._cache.scratch_position
        query_positions = np.where(is_idle, 0, positions)
        view = CacheView(
            slots=self._slots[: len(positions)],
            is_dense=True,
            write_positions=self._to_device(positions[:, None]),
            query_positions=self._to_device(query_positions[:, None]),
            kv_length=self._decode_length(int(query_positions.max()) + 1),
        )
        output = self._decode_step(self._to_device(token_ids[:, None]), view)
        return StepOutput(output.logits[:num_rows], output.hidden[:num_rows])

    def warm_up(self) -> None:
        """Run the decode shapes that a compiler treats differently, on slots that are empty.

        With few shapes, run them all, the largest first: the recordings of the smaller ones then
        find memory to share. Without, run one row, which is a shape of its own, and some others:
        rows and lengths become dynamic once they vary.
        """
        rows, lengths = {1, min(2, self._max_slots), self._max_slots}, {KV_BUCKET, 3 * KV_BUCKET}
        if self._has_few_shapes:
            rows = {self._padded_rows(n) for n in range(1, self._max_slots + 1)}
            lengths = {self._decode_length(n) for n in range(1, self._max_model_len + 1)}
        for num_rows in sorted(rows, reverse=True):
            for length in sorted(lengths, reverse=True):
                position = min(length, self._max_model_len) - 1
                token_ids = np.zeros(num_rows, dtype=np.int64)
                self.decode(token_ids, np.full(num_rows, position, dtype=np.int64))

    @torch.inference_mode()
    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of one slot to another."""
        self._cache.move(source, target, num_tokens)

    @torch.inference_mode()
    def clear_slot(self, slot: int) -> None:
        """Zero a slot whose content is not to be trusted."""
        self._cache.clear(slot)

    @torch.inference_mode()
    def keep_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Keep a copy of the first `num_tokens` positions of a slot under a number."""
        self._prefixes[prefix_id] = self._cache.read(slot, num_tokens)

    @torch.inference_mode()
    def load_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of a kept prefix to a slot."""
        self._cache.write(slot, num_tokens, self._prefixes[prefix_id])

    def drop_prefix(self, prefix_id: int) -> None:
        """Free a kept prefix."""
        del self._prefixes[prefix_id]

    def _run(self, token_ids: torch.Tensor, view: CacheView) -> StepOutput:
        self._cache.use(view)
        output = self._model(
            input_ids=token_ids,
            position_ids=view.query_positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        hidden, self._last_hidden = self._last_hidden, None
        assert hidden is not None
        return StepOutput(logits=output.logits[:, -1], hidden=hidden[:, -1])

    def _padded_rows(self, num_rows: int) -> int:
        if not self._has_few_shapes:
            return num_rows
        return min(_power_of_two(num_rows), self._max_slots)

    def _decode_length(self, length: int) -> int:
        if not self._has_few_shapes:
            return self._kv_bucket(length)
        return self._kv_bucket(KV_BUCKET * _power_of_two(-(-length // KV_BUCKET)))

    def _kv_bucket(self, length: int) -> int:
        return min(_round_up(length, KV_BUCKET), self._max_model_len)

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _power_of_two(number: int) -> int:
    """Return the smallest one that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
