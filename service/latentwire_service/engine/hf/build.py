"""From a loaded model to a runner: what its cache looks like, and whether slots work.

Nothing here knows a model by name. Whether a model can be served is found out by asking its own
interface and by comparing one short pass over slots with the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire_service.engine.errors import EngineError, UnsupportedModelError
from latentwire_service.engine.hf import attention
from latentwire_service.engine.hf.cpu.linear import LinearCall, optimise_linears, watch_linears
from latentwire_service.engine.hf.kv_cache import LayerShape
from latentwire_service.engine.hf.model_runner import HfModelRunner
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.runner import PromptPart

_PROBE_TOKENS = 16
# Median over positions of the relative error of a hidden row. Another order of summation moves fp32
# by 1e-6; in 16 bits single rows can be far off where a token is a strange one, the median is not.
# A wrong mask or position moves every row but the first.
_MAX_MEDIAN_ERROR = {torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 0.3}


@dataclass(frozen=True, slots=True)
class Probe:
    """What one pass of the model's own code shows.

    Attributes:
        hidden: `[_PROBE_TOKENS, hidden_size]` float32, the reference for the slots.
        shapes: keys and values of each layer.
        linear_calls: which linear layers it called with which tensors.
        max_positions: the longest sequence whose rotary frequencies are the same whatever runs
            beside it; None when any is.
    """

    token_ids: Sequence[int]
    hidden: torch.Tensor
    shapes: Sequence[LayerShape]
    linear_calls: Sequence[LinearCall]
    max_positions: int | None

    @property
    def hidden_size(self) -> int:
        """Width H of a hidden row."""
        return self.hidden.shape[1]

    @property
    def values_per_position(self) -> int:
        """Numbers that the KV cache stores per position, all layers."""
        return sum(shape.num_values for shape in self.shapes)


@torch.inference_mode()
def probe(model: Any) -> Probe:
    """Run a few tokens through the model's own attention and cache.

    Raises:
        UnsupportedModelError: a layer's cache is not keys and values per position (state-space,
            hybrid), or the model cannot be called as a decoder.
    """
    name = model.config.model_type
    with _refusing(name):
        cache = DynamicCache(config=model.config)
    _check_layers(cache.layers, name)
    if getattr(model.config, "alibi", False):
        # Such a model biases its scores in code of its own, which can differ between its attention
        # implementations, and over a short check by less than 16 bits round off.
        raise UnsupportedModelError(f"{name} is configured with linear position biases (alibi)")
    # Distinct small ids: any vocabulary has them, and a wrong order of positions shows.
    token_ids = list(range(3, 3 + _PROBE_TOKENS))
    with _refusing(name), watch_linears(model) as linear_calls:
        output = model(
            input_ids=torch.tensor([token_ids], device=model.device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
    shapes = [_layer_shape(layer, name) for layer in cache.layers]
    hidden = output.hidden_states[-1][0].float()
    limits = [rope.max_positions for rope in _varying_ropes(model)]
    return Probe(token_ids, hidden, shapes, linear_calls, min(limits, default=None))


@contextmanager
def _refusing(model_type: str) -> Iterator[None]:
    """Turn what a model's own code raises, when used as a decoder, into a refusal.

    Running out of memory says nothing about the model and is passed on.
    """
    try:
        yield
    except (EngineError, torch.OutOfMemoryError):
        raise
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".strip(": ")
        raise UnsupportedModelError(
            f"{model_type} cannot be run as a decoder over slots ({reason})"
        ) from error


def _check_layers(layers: Sequence[object], model_type: str) -> None:
    """Refuse state-space and hybrid models by the kinds of cache their config asks for."""
    other = {type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)}
    if other:
        raise UnsupportedModelError(
            f"{model_type} has layers without a standard KV cache ({', '.join(sorted(other))})"
        )


def _layer_shape(layer: object, model_type: str) -> LayerShape:
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise UnsupportedModelError(f"{model_type} has a layer that leaves its KV cache empty")
    return LayerShape(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1])


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
        probed: what `probe` saw of it.
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
    attention.register()
    with _refusing(name):
        return _build(model, probed, max_slots, max_model_len, compile_decode)


def _build(
    model: Any, probed: Probe, max_slots: int, max_model_len: int, compile_decode: bool
) -> HfModelRunner:
    _use_slot_attention(model)
    for rope in _varying_ropes(model):
        rope.fix()
    optimise_linears(model, probed.linear_calls)
    runner = HfModelRunner(
        model, probed.shapes, probed.hidden_size, max_slots, max_model_len, compile_decode
    )
    if max_model_len >= _PROBE_TOKENS:
        _check(model, probed, runner)
    if compile_decode:
        runner.warm_up()
    return runner


def _use_slot_attention(model: Any) -> None:
    """Name slot attention in every config, which models read at each call.

    Not by `set_attn_implementation`, which leaves out those that write their attention themselves:
    they read the mask from the same registry, and where that is not enough, the check will show it.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = attention.SLOT_ATTENTION


@dataclass(frozen=True, slots=True)
class _VaryingRope:
    """A rotary embedding that takes other frequencies when a sequence of the batch grows long.

    Attributes:
        module: its module.
        layer_type: the kind of layer it is for, where one module serves several.
        max_positions: the length up to which it keeps those it started with.
    """

    module: Any
    layer_type: str | None
    max_positions: int

    def fix(self) -> None:
        """Leave it with these frequencies, without a look at the batch in every step."""
        if self.layer_type is None:
            self.module.rope_type = "default"
        else:
            self.module.rope_type = self.module.rope_type | {self.layer_type: "default"}


def _varying_ropes(model: Any) -> Iterator[_VaryingRope]:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind == "longrope":
                parameters = module.config.rope_parameters
                parameters = parameters if layer_type is None else parameters[layer_type]
                limit = parameters["original_max_position_embeddings"]
            elif isinstance(kind, str) and "dynamic" in kind:
                limit = module.original_max_seq_len
            else:
                continue
            yield _VaryingRope(module, layer_type, limit)


def _check(model: Any, probed: Probe, runner: HfModelRunner) -> None:
    """Compare hidden states over slots with the model's own, next to neighbours.

    In prefill they are shorter, so that they are padded; in decode one stands at the last position
    of its slot: what depends on the longest sequence of a batch shows.
    """
    tokens, half = probed.token_ids, _PROBE_TOKENS // 2
    lengths = list(range(half, 0, -2))[: runner.max_slots]
    prefilled = runner.prefill(
        [PromptPart(slot, Prompt(tuple(tokens[:length])), 0) for slot, length in enumerate(lengths)]
    ).hidden
    decoded = []
    for position in range(half, _PROBE_TOKENS):
        positions = np.array([position, runner.max_model_len - 1][: runner.max_slots])
        token_ids = np.full(len(positions), tokens[position])
        decoded.append(runner.decode(token_ids, positions).hidden[0])
    error = max(
        _median_error(prefilled, probed.hidden[[length - 1 for length in lengths]]),
        _median_error(torch.stack(decoded), probed.hidden[half:]),
    )
    if not error <= _MAX_MEDIAN_ERROR[model.dtype]:
        raise UnsupportedModelError(
            f"{model.config.model_type} computes other hidden states over slots than by itself "
            f"(median relative error {error:.1e})"
        )


def _median_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    errors = (actual.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.median())
