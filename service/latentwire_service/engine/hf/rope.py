"""Rotary embeddings whose frequencies depend on the longest sequence of a batch.

Over slots, one long request would change the frequencies of its neighbours. Such an embedding is
therefore fixed to the frequencies that it starts with, which limits the length of every sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VaryingRope:
    """A rotary embedding that switches frequencies when a sequence of the batch grows long.

    Attributes:
        module: the embedding.
        layer_type: the kind of layer it serves, when one module serves several; else None.
        max_positions: the length up to which it keeps its first frequencies.
    """

    module: Any
    layer_type: str | None
    max_positions: int

    def fix(self) -> None:
        """Keep the first frequencies, and stop inspecting the batch in every step."""
        if self.layer_type is None:
            self.module.rope_type = "default"
        else:
            self.module.rope_type = self.module.rope_type | {self.layer_type: "default"}


def varying_ropes(model: Any) -> Iterator[VaryingRope]:
    """Find the model's rotary embeddings that depend on the longest sequence."""
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
            yield VaryingRope(module, layer_type, limit)
