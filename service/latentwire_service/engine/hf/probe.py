"""One short pass of the model's own code: it shows the cache, the limits, and a reference.

Nothing here knows a model by name. A model that the engine cannot serve is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire_service.engine.errors import EngineError, UnsupportedModelError
from latentwire_service.engine.hf import attention
from latentwire_service.engine.hf.cpu.linear import LinearCall, watch_linears
from latentwire_service.engine.hf.kv_cache import LayerShape
from latentwire_service.engine.hf.rope import varying_ropes

PROBE_TOKENS = 16
# Median over positions of the relative error of a hidden row. Another order of summation moves fp32
# by 1e-6. In 16 bits single rows can be far off where a token is a strange one; the median is not.
# A wrong mask or position moves every row but the first.
MAX_MEDIAN_ERROR = {torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 0.3}
# The same computation twice: only sums in an order that a device does not fix may differ.
_MAX_EMBEDDING_ERROR = 0.01

# A lost device or full memory says nothing about the model. AcceleratorError is newer than the
# oldest supported torch, which raises a plain RuntimeError when it loses a device.
_PASSED_ON: tuple[type[Exception], ...] = (
    EngineError,
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of the pass.

    Attributes:
        token_ids: the `PROBE_TOKENS` input tokens.
        hidden: `[PROBE_TOKENS, hidden_size]` float32 on the model's device, the reference for the
            slots.
        shapes: keys and values of each layer.
        linear_calls: the calls of the model's linear layers.
        embedding_size: width of an input embedding.
        embedding_refusal: why the model cannot be given embeddings instead of tokens; None if it
            can.
        max_positions: the longest sequence that does not change the rotary frequencies of its
            neighbours; None when no length changes them.
    """

    token_ids: Sequence[int]
    hidden: torch.Tensor
    shapes: Sequence[LayerShape]
    linear_calls: Sequence[LinearCall]
    embedding_size: int
    embedding_refusal: str | None
    max_positions: int | None

    @property
    def hidden_size(self) -> int:
        """Width H of a hidden row."""
        return self.hidden.shape[1]

    @property
    def values_per_position(self) -> int:
        """Numbers that the KV cache stores per position, in all layers."""
        return sum(shape.num_values for shape in self.shapes)


# Not inference mode: `watch_linears` needs tensors that count in-place writes.
@torch.no_grad()
def probe(model: Any) -> Probe:
    """Run a few tokens through the model's own attention and cache.

    The attention is the model's eager one, because a fused one may leave out a part: up to
    transformers 5.19, Gemma 2 uses `sdpa` by default, which silently drops the soft cap.

    Raises:
        UnsupportedModelError: a layer's cache is not keys and values per position (state-space,
            hybrid), or the model cannot be called as a decoder.
    """
    name = model.config.model_type
    with refusing(name):
        cache = DynamicCache(config=model.config)
    _check_layers(cache.layers, name)
    if getattr(model.config, "alibi", False):
        # Such a model biases its scores in code of its own. The check of `build_runner` is too
        # short to detect a missing bias in 16 bits.
        raise UnsupportedModelError(f"{name} is configured with linear position biases (alibi)")
    # Every vocabulary has these small ids. They differ, so a wrong order of positions shows.
    token_ids = list(range(3, 3 + PROBE_TOKENS))
    with (
        refusing(name),
        attention.implementation(model, "eager"),
        watch_linears(model) as linear_calls,
    ):
        output = model(
            input_ids=torch.tensor([token_ids], device=model.device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
    shapes = _layer_shapes(cache.layers, name)
    hidden = output.hidden_states[-1][0].float()
    limits = [rope.max_positions for rope in varying_ropes(model)]
    with refusing(name):
        embedding_size, refusal = _probe_embeddings(model, token_ids, output)
    return Probe(
        token_ids,
        hidden,
        shapes,
        linear_calls,
        embedding_size,
        refusal,
        min(limits, default=None),
    )


def _probe_embeddings(
    model: Any, token_ids: Sequence[int], expected: Any
) -> tuple[int, str | None]:
    """Give the model the embeddings of tokens, and compare with what it gave for the tokens.

    Some models scale the embeddings, or look other tables up by the token ids. This finds those for
    which the two differ.

    Args:
        model: a causal LM.
        token_ids: the input of the pass that gave `expected`.
        expected: the output of that pass, with logits and hidden states.

    Returns:
        the width of an embedding, and why the model cannot be given embeddings.
    """
    embeddings = model.get_input_embeddings()(torch.tensor([token_ids], device=model.device))
    size = embeddings.shape[-1]
    try:
        with attention.implementation(model, "eager"):
            output = model(
                inputs_embeds=embeddings,
                past_key_values=DynamicCache(config=model.config),
                use_cache=True,
                output_hidden_states=True,
            )
    except _PASSED_ON:
        raise
    except Exception as error:
        # The model's own code: whatever it raises, it serves tokens all the same.
        return size, f"it takes no input embeddings ({type(error).__name__}: {error})"
    errors = [
        relative_error(output.hidden_states[-1][0], expected.hidden_states[-1][0].float()),
        relative_error(output.logits[0], expected.logits[0].float()),
    ]
    if not all(error <= _MAX_EMBEDDING_ERROR for error in errors):
        return size, "it computes other hidden states from embeddings than from their tokens"
    return size, None


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the median over positions of the relative error of a row, `[n, width]` float32."""
    errors = (actual.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.median())


@contextmanager
def refusing(model_type: str) -> Iterator[None]:
    """Turn an exception of the model's own code, called as a decoder, into a refusal.

    Errors of the device and of its memory say nothing about the model and are passed on.

    Raises:
        UnsupportedModelError: the model's code raised.
    """
    try:
        yield
    except _PASSED_ON:
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
    """Refuse state-space and hybrid models by the kinds of cache that their config requests."""
    other = {type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)}
    if other:
        raise _no_standard_cache(model_type, ", ".join(sorted(other)))


def _layer_shapes(layers: Sequence[Any], model_type: str) -> list[LayerShape]:
    empty = [
        str(index)
        for index, layer in enumerate(layers)
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None
    ]
    if empty:
        # Some models keep their state elsewhere although their config requests a standard cache.
        raise _no_standard_cache(model_type, f"empty after a pass: {', '.join(empty)}")
    return [
        LayerShape(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1])
        for layer in layers
    ]


def _no_standard_cache(model_type: str, detail: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{model_type} has layers without a standard KV cache ({detail})")
