"""Messages to one receiver: input embeddings of a bridge, chosen and mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentwire.compressors.base import COMPRESSED, Rows, checked_arrays
from latentwire.compressors.layers import (
    Array,
    Tensors,
    attention,
    gelu,
    layer_norm,
    linear,
    sinusoids,
)
from latentwire.compressors.learned_config import BridgeConfig, MixerConfig, SelectorConfig
from latentwire.compressors.linear import interpolate
from latentwire.compressors.training_free import PLACES, checked_places

Places = npt.NDArray[np.intp]

# The unit in which the scorer sees the number of a row.
_STEP_UNIT = 64


@dataclass(frozen=True, eq=False)
class RowChoice:
    """Which rows carry most to the receiver.

    Attributes:
        tensors: of the scorer, `scorer.norm`, `scorer.up` and `scorer.out`.
        windows: by k, how many times k rows from the start on may be chosen.
    """

    tensors: Tensors
    windows: Mapping[str, float]

    def scores(self, rows: Rows) -> Array:
        """Return what each row is expected to gain, `[L]`, up to a constant; L is at least 1."""
        known, steps = scorer_inputs(rows)
        normed = layer_norm(known, self.tensors, "scorer.norm")
        hidden = gelu(linear(np.concatenate([normed, steps], 1), self.tensors, "scorer.up"))
        result: Array = linear(hidden, self.tensors, "scorer.out")[:, 0]
        return result

    def places(self, rows: Rows, k: int) -> Places:
        """Return the places of min(k, L) rows, ascending; the first of equal ones wins."""
        num_rows = len(rows)
        if num_rows <= k:
            return np.arange(num_rows)
        num_candidates = min(num_rows, max(k, int(window_factor(self.windows, k) * k)))
        scores = self.scores(rows)[:num_candidates]
        return np.sort(np.argsort(-scores, kind="stable")[:k])


def window_factor(windows: Mapping[str, float], k: int) -> float:
    """Return the factor of the k that is nearest; of two equally near ones, of the smaller."""
    return windows[min(windows, key=lambda each: (abs(int(each) - k), int(each)))]


def scorer_inputs(rows: Rows) -> tuple[Array, Array]:
    """Return what the scorer knows of each row.

    Args:
        rows: `[L, H]`, L at least 1.

    Returns:
        `[L, 2 H]`: the row and its successor; after the last row, the mean row. And `[L, 2]`: the
        number of the row in two scales.
    """
    after = np.concatenate([rows[1:], rows.mean(axis=0, keepdims=True)])
    steps = np.arange(len(rows), dtype=np.float32)[:, None]
    return (
        np.concatenate([rows, after], axis=1),
        np.concatenate([steps / np.float32(_STEP_UNIT), 1 / (1 + steps)], axis=1),
    )


@dataclass(frozen=True, eq=False)
class BridgeMap:
    """A bridge in numpy.

    Attributes:
        tensors: its tensors, each with `bridge.` before its name.
        config: its kind and sizes.
    """

    tensors: Tensors
    config: BridgeConfig

    def apply(self, rows: Rows) -> Array:
        """Map rows `[L, H]` to input embeddings `[L, W]`."""
        centred = rows - self.tensors["bridge.mean"]
        windows = np.zeros((len(rows), self.config.window * rows.shape[1]), np.float32)
        for shift in range(min(self.config.window, len(rows))):
            columns = slice(shift * rows.shape[1], (shift + 1) * rows.shape[1])
            windows[: len(rows) - shift, columns] = centred[shift:]
        result: Array = windows @ self.tensors["bridge.weight"] + self.tensors["bridge.bias"]
        result = result * self.tensors["bridge.factor"]
        if self.config.kind == "mlp":
            normed = layer_norm(windows, self.tensors, "bridge.norm")
            hidden = gelu(linear(normed, self.tensors, "bridge.up"))
            result = result + linear(hidden, self.tensors, "bridge.down")
        return result


@dataclass(frozen=True, eq=False)
class MessageMap:
    """Embeddings of chosen rows; a resampler adds to each what it reads in all others.

    Attributes:
        tensors: of the bridge, the scorer, the mixer if there is one, and `back`: the linear map
            from an embedding to the row that it stands for.
        config: sizes; a `MixerConfig` if there is a mixer.
        k: most rows of a message.
        width: W of the receiver.
    """

    tensors: Tensors
    config: SelectorConfig
    k: int
    width: int

    def compress(self, rows: Rows) -> dict[str, Array]:
        """Return the message, and the places of the rows that it was made of."""
        if not len(rows):
            return {COMPRESSED: np.zeros((0, self.width)), PLACES: np.zeros((0, 1))}
        places = RowChoice(self.tensors, self.config.windows).places(rows, self.k)
        message = BridgeMap(self.tensors, self.config.bridge).apply(rows)
        message = (
            message[places]
            if not isinstance(self.config, MixerConfig)
            else self._mixed(message, places, self.config.num_heads)
        )
        return {COMPRESSED: message, PLACES: places[:, None].astype(np.float64)}

    def checked(self, arrays: Mapping[str, Rows]) -> dict[str, Rows]:
        """Return the arrays as float32, if they can be of this map."""
        return checked_arrays(arrays, PLACES, width=self.width)

    def decompress(self, arrays: dict[str, Rows], num_rows: int) -> Array:
        """Return the estimate `[num_rows, H]`: linear between the rows of the message."""
        message = arrays[COMPRESSED]
        places = checked_places(arrays[PLACES], len(message), num_rows)
        rows = message @ self.tensors["back.weight"] + self.tensors["back.bias"]
        return interpolate(rows.astype(np.float32), places, num_rows)

    def _mixed(self, embeddings: Array, places: Places, num_heads: int) -> Array:
        read = layer_norm(embeddings, self.tensors, "norm") + sinusoids(len(embeddings), self.width)
        queries = linear(read[places] + self.tensors["query"][: len(places)], self.tensors, "q")
        keys, values = (linear(read, self.tensors, name) for name in ("k", "v"))
        mixed = linear(attention(queries, keys, values, num_heads), self.tensors, "o")
        message: Array = embeddings[places] + mixed
        hidden = gelu(linear(layer_norm(message, self.tensors, "norm2"), self.tensors, "up"))
        return message + linear(hidden, self.tensors, "down")
