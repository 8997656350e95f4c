"""The layers of learned compressors in numpy, equal to the torch layers that they were trained as.

Every function computes in the dtype of its arguments, and never warns about values that overflow:
the result is checked at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.compressors.base import Rows

Array = npt.NDArray[Any]
Tensors = Mapping[str, Rows]

_NUM_WAVES = 16
POSITION_WIDTH = 4 * _NUM_WAVES

# As torch's LayerNorm.
_EPSILON = 1e-5
# Abramowitz and Stegun 7.1.26: the error is below 1.5e-7.
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_P = 0.3275911


def linear(values: Array, tensors: Tensors, name: str) -> Array:
    """Apply `nn.Linear`.

    Args:
        values: `[..., n]`.
        tensors: hold `NAME.weight` `[m, n]`, and `NAME.bias` `[m]` if it has one.
        name: of the layer.
    """
    result: Array = values @ tensors[f"{name}.weight"].T
    bias = tensors.get(f"{name}.bias")
    return result if bias is None else result + bias


def layer_norm(values: Array, tensors: Tensors, name: str) -> Array:
    """Apply `nn.LayerNorm` over the last dimension."""
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    result: Array = centred / np.sqrt(variance + values.dtype.type(_EPSILON))
    return result * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(values: Array) -> Array:
    """Apply GELU as torch does by default: `x / 2 (1 + erf(x / sqrt(2)))`."""
    result: Array = (0.5 * values * (1 + _erf(values.astype(np.float64) * 0.5**0.5))).astype(
        values.dtype
    )
    return result


def sigmoid(values: Array) -> Array:
    """Apply the logistic function, without overflow."""
    smaller = np.exp(-np.abs(values))
    result: Array = np.where(values >= 0, 1 / (1 + smaller), smaller / (1 + smaller))
    return result


def softmax(values: Array) -> Array:
    """Apply softmax over the last dimension, which is not empty."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def attention(queries: Array, keys: Array, values: Array, num_heads: int) -> Array:
    """Attend with several heads, without masks.

    Args:
        queries: `[n, d]`; head h is columns `[h * d / num_heads, (h + 1) * d / num_heads)`.
        keys: `[m, d]`; m is at least 1.
        values: `[m, d]`.
        num_heads: divides d.

    Returns:
        `[n, d]`, of all heads one after the other.
    """
    split = [_heads(each, num_heads) for each in (queries, keys, values)]
    scale = queries.dtype.type((queries.shape[1] // num_heads) ** -0.5)
    weights = softmax(split[0] @ split[1].transpose(0, 2, 1) * scale)
    result: Array = (weights @ split[2]).transpose(1, 0, 2).reshape(queries.shape)
    return result


def sinusoids(num_rows: int, width: int) -> npt.NDArray[np.float32]:
    """Return sines, then cosines, of the number of each row over wavelengths from 6 to 6,000 rows.

    Args:
        num_rows: L.
        width: of the result; if it is odd, the last column is zero.

    Returns:
        `[L, width]`.
    """
    num_waves = width // 2
    steps = np.arange(num_rows, dtype=np.float64)[:, None]
    phase = steps * np.exp(-np.log(1000.0) * np.arange(num_waves) / max(1, num_waves))
    result = np.zeros((num_rows, width), np.float32)
    result[:, :num_waves] = np.sin(phase)
    result[:, num_waves : 2 * num_waves] = np.cos(phase)
    return result


def positions(num_rows: int) -> npt.NDArray[np.float32]:
    """Return what tells rows apart by their place.

    Args:
        num_rows: L.

    Returns:
        `[L, POSITION_WIDTH]`: sines and cosines of the row's number t, over wavelengths from 6 to
        6,000 rows, and of its part t / L of the latent, from half a wave per latent on.
    """
    steps = np.arange(num_rows, dtype=np.float64)[:, None]
    number = steps / 1000.0 ** (np.arange(_NUM_WAVES) / _NUM_WAVES)
    part = (steps + 0.5) / max(1, num_rows) * np.pi * np.arange(1, _NUM_WAVES + 1)
    waves = [wave(each) for each in (number, part) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def _heads(values: Array, num_heads: int) -> Array:
    return values.reshape(len(values), num_heads, -1).transpose(1, 0, 2)


def _erf(values: Array) -> Array:
    magnitude = np.abs(values)
    ratio = 1 / (1 + _ERF_P * magnitude)
    series = np.zeros_like(values)
    for coefficient in reversed(_ERF):
        series = (series + coefficient) * ratio
    result: Array = np.sign(values) * (1 - series * np.exp(-magnitude * magnitude))
    return result
