"""Forward passes over slots. After loading, only this module calls the model.

Hidden rows are the output of the base model, before the LM head. So the model need not return the
hidden states of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from latentwire_service.engine.hf.decode_step import Step, compiled, either
from latentwire_service.engine.hf.kv_cache import CacheView, LayerShape, SlotCache
from latentwire_service.engine.runner import PromptPart, StepEmbeddings, StepOutput

# Attention reads whole buckets of this many positions, which gives few shapes and little waste.
KV_BUCKET = 64
# Prompt chunks are padded to whole buckets, because oneDNN builds and caches a kernel for each
# number of rows: prompts of every length would fill that cache with hundreds of megabytes.
PREFILL_BUCKET = 16
# Most logits of a pass that scores tokens: 32 MiB in float32, which the score needs twice.
_MAX_LOGITS = 2**23


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """The sizes of a decode step.

    Attributes:
        num_rows: slots of the step.
        length: positions that attention reads.
        has_embeddings: whether rows may get an embedding in place of a token.
    """

    num_rows: int
    length: int
    has_embeddings: bool = False


class HfModelRunner:
    """Any Hugging Face decoder whose attention goes through the attention interface.

    Args:
        model: a causal LM in eval mode on its device, set to `SLOT_ATTENTION`.
        shapes: keys and values of each layer.
        hidden_size: width H of a hidden row.
        max_slots: sequences in the KV cache, which is allocated here.
        max_model_len: positions of one sequence.
        compile_decode: compile the decode step, and record it as CUDA graphs on a GPU.
        has_few_shapes: round rows and KV cache buckets of a decode step up to powers of two, so
            that there are few shapes to record. None means True if shapes are recorded.
        takes_embeddings: whether the warm-up covers decode steps with embeddings.
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
        takes_embeddings: bool = False,
    ) -> None:
        self._model = model
        self._max_slots = max_slots
        self._max_model_len = max_model_len
        self._device: torch.device = model.device
        self._cache = SlotCache(shapes, max_slots, max_model_len, model.dtype, model.device)
        self._hidden_size = hidden_size
        self._vocab_size: int = model.config.get_text_config().vocab_size
        self._slots = torch.arange(max_slots, device=self._device)
        self._prefixes: dict[int, Sequence[torch.Tensor]] = {}
        # The LM classes return logits only, so hooks read the outputs of the models inside them.
        # The one with the final rows is always the last to return. `base_model` does not identify
        # it: that may be a wrapper of it, or the LM class itself.
        self._last_hidden: torch.Tensor | None = None
        self._hooks = [
            module.register_forward_hook(self._keep_last_hidden)
            for module in model.modules()
            if module is not model and isinstance(module, PreTrainedModel)
        ]
        if has_few_shapes is None:
            has_few_shapes = compile_decode and self._device.type == "cuda"
        self._has_few_shapes = has_few_shapes
        self._takes_embeddings = takes_embeddings
        self._embed: Any = model.get_input_embeddings()
        with torch.inference_mode():
            self._embedding_size: int = self._embed(self._slots[:1]).shape[-1]
        self._decode_step: Step = (
            compiled(self._run, self._run_mixed, self._device)
            if compile_decode
            else either(self._run, self._run_mixed)
        )

    def close(self) -> None:
        """Detach from the model, which keeps this runner and its KV cache alive until then."""
        for hook in self._hooks:
            hook.remove()

    def _keep_last_hidden(self, _module: object, _args: object, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            self._last_hidden = hidden

    @property
    def device(self) -> torch.device:
        """The device of the model and its outputs."""
        return self._device

    @property
    def hidden_size(self) -> int:
        """Width H of a hidden row."""
        return self._hidden_size

    @property
    def embedding_size(self) -> int:
        """Width of an input embedding."""
        return self._embedding_size

    @property
    def max_slots(self) -> int:
        """Sequences in the KV cache at once."""
        return self._max_slots

    @property
    def max_model_len(self) -> int:
        """Positions of one sequence."""
        return self._max_model_len

    @property
    def max_outputs(self) -> int:
        """Most positions of a prefill whose logits are computed, when parts have many."""
        return max(1, _MAX_LOGITS // self._vocab_size)

    @torch.inference_mode()
    def prefill(self, parts: Sequence[PromptPart]) -> StepOutput:
        """Run prompt chunks together, padded on the left so that each row ends at the last column.

        Padding writes to the scratch position, which no attention reads.
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
        ids = self._to_device(token_ids)
        num_outputs = max(part.num_outputs for part in parts)
        if any(part.prompt.embeddings for part in parts):
            whole = self._forward(view, num_outputs, inputs_embeds=self._embedded(ids, parts))
        else:
            whole = self._forward(view, num_outputs, input_ids=ids)
        rows = [
            row * num_outputs + column
            for row, part in enumerate(parts)
            for column in range(num_outputs - part.num_outputs, num_outputs)
        ]
        if len(rows) == len(whole.logits):
            return whole
        index = self._to_device(np.array(rows))
        return StepOutput(whole.logits[index], whole.hidden[index])

    @torch.inference_mode()
    def decode(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        embeddings: StepEmbeddings | None = None,
    ) -> StepOutput:
        """Run one input of each slot ``0..B-1``.

        Args:
            token_ids: `[B]`, the input tokens.
            positions: `[B]`, their positions. A row at position `max_model_len` is idle: it writes
                to the scratch position.
            embeddings: of B rows, read in place of some tokens; None when all inputs are tokens.

        Returns:
            one row per slot. On a GPU, the next call of a compiled step overwrites them.
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
        if embeddings is not None and num_idle:
            embeddings = StepEmbeddings(
                pad(embeddings.rows, (0, 0, 0, num_idle)), pad(embeddings.is_used, (0, num_idle))
            )
        output = self._decode_step(self._to_device(token_ids[:, None]), view, embeddings)
        return StepOutput(output.logits[:num_rows], output.hidden[:num_rows])

    def warm_up(self) -> None:
        """Run all `warm_up_shapes`, on slots that are empty."""
        for shape in self.warm_up_shapes():
            self.run_shape(shape)

    def run_shape(self, shape: DecodeShape) -> None:
        """Run a decode step of one shape, on slots that are empty."""
        position = min(shape.length, self._max_model_len) - 1
        token_ids = np.zeros(shape.num_rows, dtype=np.int64)
        embeddings = None
        if shape.has_embeddings:
            embeddings = StepEmbeddings(
                torch.zeros(shape.num_rows, self._embedding_size, device=self._device),
                torch.zeros(shape.num_rows, dtype=torch.bool, device=self._device),
            )
        self.decode(token_ids, np.full(shape.num_rows, position, dtype=np.int64), embeddings)

    def warm_up_shapes(self) -> list[DecodeShape]:
        """Return the decode shapes for which a compiler does work.

        With few shapes, these are all of them. The largest come first, so that the recordings of
        smaller ones share their memory. Without, these are one row, which is compiled separately,
        and some others, because rows and lengths become dynamic when they vary. Steps with
        embeddings have the same sizes.
        """
        rows, lengths = {1, min(2, self._max_slots), self._max_slots}, {KV_BUCKET, 3 * KV_BUCKET}
        if self._has_few_shapes:
            rows = {self._padded_rows(n) for n in range(1, self._max_slots + 1)}
            lengths = {self._decode_length(n) for n in range(1, self._max_model_len + 1)}
        return [
            DecodeShape(num_rows, length, has_embeddings)
            for has_embeddings in ((False, True) if self._takes_embeddings else (False,))
            for num_rows in sorted(rows, reverse=True)
            for length in sorted(lengths, reverse=True)
        ]

    @torch.inference_mode()
    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of one slot to another."""
        self._cache.move(source, target, num_tokens)

    @torch.inference_mode()
    def clear_slot(self, slot: int) -> None:
        """Zero a slot whose content may be damaged."""
        self._cache.clear(slot)

    @torch.inference_mode()
    def keep_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Keep a copy of the first `num_tokens` positions of a slot as a prefix."""
        self._prefixes[prefix_id] = self._cache.read(slot, num_tokens)

    @torch.inference_mode()
    def load_prefix(self, prefix_id: int, slot: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of a kept prefix to a slot."""
        self._cache.write(slot, num_tokens, self._prefixes[prefix_id])

    def drop_prefix(self, prefix_id: int) -> None:
        """Free a kept prefix."""
        del self._prefixes[prefix_id]

    def _embedded(self, token_ids: torch.Tensor, parts: Sequence[PromptPart]) -> torch.Tensor:
        """Look up `[B, Q]` tokens that end at the last column; write given embeddings over them."""
        embeddings: torch.Tensor = self._embed(token_ids)
        for row, part in enumerate(parts):
            start = token_ids.shape[1] - len(part.prompt)
            for span in part.prompt.embeddings:
                # `tensor` copies: `from_numpy` would warn that the rows are read-only.
                rows = torch.tensor(span.rows).to(embeddings)
                embeddings[row, start + span.start : start + span.end] = rows
        return embeddings

    def _run(self, token_ids: torch.Tensor, view: CacheView) -> StepOutput:
        return self._forward(view, 1, input_ids=token_ids)

    def _run_mixed(
        self, token_ids: torch.Tensor, view: CacheView, embeddings: StepEmbeddings
    ) -> StepOutput:
        of_tokens = self._embed(token_ids)
        given = embeddings.rows[:, None].to(of_tokens.dtype)
        mixed = torch.where(embeddings.is_used[:, None, None], given, of_tokens)
        return self._forward(view, 1, inputs_embeds=mixed)

    def _forward(self, view: CacheView, num_outputs: int, **inputs: torch.Tensor) -> StepOutput:
        """Call the model with `input_ids` or `inputs_embeds`; return the last positions of rows."""
        self._cache.use(view)
        output = self._model(
            **inputs,
            position_ids=view.query_positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=num_outputs,
        )
        hidden, self._last_hidden = self._last_hidden, None
        assert hidden is not None
        if num_outputs == 1:
            return StepOutput(logits=output.logits[:, -1], hidden=hidden[:, -1])
        return StepOutput(
            logits=output.logits[:, -num_outputs:].flatten(0, 1),
            hidden=hidden[:, -num_outputs:].flatten(0, 1),
        )

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
    """Return the smallest power of two that is at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
