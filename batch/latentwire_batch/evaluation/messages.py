"""The messages of one task: its plan as text, its latent, and the controls. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.tensors import encode_hidden_state
from latentwire_batch.evaluation.samples import Pair, Rows

CONTROL_PREFIX = "random:"
MATCHED = "matched"
MEANINGS = {
    "text": "the plan's text",
    "none": "nothing",
    "zeros": "rows of zeros",
    MATCHED: "the task's latent",
    "other": "another task's latent",
    "shuffled": "the task's latent, its rows shuffled",
    "noise": "noise with the norms of the latent's rows",
    "random-bridge": "the task's latent through a random bridge",
}
NAMES = tuple(MEANINGS)
# Messages with which the receiver also solves the task.
ANSWERED_NAMES = ("text", "none", MATCHED, "other")


@dataclass(frozen=True, slots=True)
class Frame:
    """The user turn around a message.

    Attributes:
        before: text before the message.
        after: text after it.
    """

    before: str
    after: str

    def around(self, part: Mapping[str, Any] | str) -> list[dict[str, Any]]:
        """Return the conversation that has the message.

        Args:
            part: a text, or a latent part.
        """
        if isinstance(part, str):
            return [{"role": "user", "content": f"{self.before}{part}{self.after}"}]
        texts = [{"type": "text", "text": text} for text in (self.before, self.after)]
        content = [texts[0], dict(part), texts[1]]
        return [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]


@dataclass(frozen=True, slots=True)
class MessageMaker:
    """Makes the messages of tasks; the same seed makes the same ones, in any order of the tasks.

    Attributes:
        bridge: name of the bridge.
        declaration: of the latents, as a request declares them.
        seed: of the shuffled rows and of the noise.
    """

    bridge: str
    declaration: Mapping[str, Any]
    seed: int

    def part(self, name: str, pair: Pair) -> Mapping[str, Any] | str:
        """Return one message: a text, or a latent part.

        Args:
            name: one of `NAMES`.
            pair: the task and another one.
        """
        if name == "text":
            return pair.sample.plan
        if name == "none":
            return ""
        prefix = CONTROL_PREFIX if name == "random-bridge" else ""
        return {
            "type": "latent",
            "hidden_state": encode_hidden_state(self.rows(name, pair)).model_dump(mode="json"),
            "latent": dict(self.declaration),
            "bridge": prefix + self.bridge,
        }

    def rows(self, name: str, pair: Pair) -> Rows:
        """Return the rows `[L, H_sender]` of a message that is a latent."""
        rows = pair.sample.rows
        rng = np.random.default_rng([self.seed, zlib.crc32(pair.sample.task_id.encode())])
        match name:
            case "zeros":
                return np.zeros_like(rows)
            case "other":
                return pair.other_rows
            case "shuffled":
                return rows[_shuffled_places(len(rows), rng)]
            case "noise":
                return noise_like(rows, rng)
        return rows


def noise_like(rows: Rows, rng: np.random.Generator) -> Rows:
    """Return Gaussian rows with the norms of the given ones.

    Args:
        rows: `[L, H]` float32.
        rng: source of the values.
    """
    noise = rng.standard_normal(rows.shape)
    # In float64, where squares of large float32 values do not overflow.
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    result: Rows = (noise * norms / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    return result


def _shuffled_places(count: int, rng: np.random.Generator) -> list[int]:
    """Return the places of shuffled rows; never their own order, unless there is but one row."""
    places = list(range(count))
    while count > 1 and places == list(range(count)):
        places = [int(place) for place in rng.permutation(count)]
    return places
