"""From a probed model to a runner over slots, with a check that it still computes the same.

Nothing here knows a model by name. A model is served when a short pass over slots agrees with the
reference that `probe` took from the model's own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latentwire_service.engine.errors import UnsupportedModelError
from latentwire_service.engine.hf import attention
from latentwire_service.engine.hf.cpu.linear import optimise_linears
from latentwire_service.engine.hf.decode_step import make_traceable
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.hf.probe import (
    MAX_MEDIAN_ERROR,
    PROBE_TOKENS,
    Probe,
    refusing,
    relative_error,
)
from latentwire_service.engine.hf.rope import varying_ropes
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.runner import PromptPart


def build_runner(
    model: Any,
    probed: Probe,
    max_slots: int,
    max_model_len: int,
    compile_decode: bool = False,
) -> HfModelRunner:
    """Put the model on slots and check that it still computes the same.

    Args:
        model: changed in place: its attention, and its linear layers.
        probed: the result of `probe` for this model.
        max_slots: sequences in the KV cache at once.
        max_model_len: positions of one sequence.
        compile_decode: compile the decode step, and warm it up.

    Raises:
        UnsupportedModelError: hidden states over slots differ from the model's own, or would
            depend on neighbours.
    """
    name = model.config.model_type
    if probed.max_positions is not None and max_model_len > probed.max_positions:
        raise UnsupportedModelError(
            f"{name} changes its rotary frequencies beyond {probed.max_positions} positions, for "
            f"all sequences at once; max_model_len {max_model_len} must not exceed that"
        )
    with refusing(name):
        return _build(model, probed, max_slots, max_model_len, compile_decode)


def _build(
    model: Any, probed: Probe, max_slots: int, max_model_len: int, compile_decode: bool
) -> HfModelRunner:
    attention.use_slots(model)
    for rope in varying_ropes(model):
        rope.fix()
    optimise_linears(model, probed.linear_calls)
    if compile_decode:
        make_traceable(model)
    runner = HfModelRunner(
        model,
        probed.shapes,
        probed.hidden_size,
        max_slots,
        max_model_len,
        compile_decode,
        takes_embeddings=probed.embedding_refusal is None,
    )
    if max_model_len >= PROBE_TOKENS:
        _check(model, probed, runner)
    if compile_decode:
        runner.warm_up()
    return runner


def _check(model: Any, probed: Probe, runner: HfModelRunner) -> None:
    """Compare hidden states over slots with the model's own, next to neighbours.

    In prefill the neighbours are shorter, so that they are padded. In decode one neighbour is at
    the last position of its slot: whatever depends on the longest sequence of a batch shows.
    """
    tokens, half = probed.token_ids, PROBE_TOKENS // 2
    lengths = list(range(half, 0, -2))[: runner.max_slots]
    prefilled = runner.prefill(
        [PromptPart(slot, Prompt(tuple(tokens[:length])), 0) for slot, length in enumerate(lengths)]
    ).hidden
    decoded = []
    for position in range(half, PROBE_TOKENS):
        positions = np.array([position, runner.max_model_len - 1][: runner.max_slots])
        token_ids = np.full(len(positions), tokens[position])
        # A copy: the next step may overwrite the output of this one.
        decoded.append(runner.decode(token_ids, positions).hidden[0].clone())
    error = max(
        relative_error(prefilled, probed.hidden[[length - 1 for length in lengths]]),
        relative_error(torch.stack(decoded), probed.hidden[half:]),
    )
    if not error <= MAX_MEDIAN_ERROR[model.dtype]:
        raise UnsupportedModelError(
            f"{model.config.model_type} computes other hidden states over slots than by itself "
            f"(median relative error {error:.1e})"
        )
