"""Bridges of a backend without a model: the built-in names, over numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire_service.engine.seams.bridge import BridgeError, BridgePrompt, BridgeSource, Rows
from support.tiny_shape import HIDDEN_SIZE


@dataclass(frozen=True)
class FakeBridge:
    """Maps each row by itself with a function of numpy arrays."""

    name: str
    make: Callable[[Rows], Rows]
    source: BridgeSource
    is_builtin: bool = True
    is_row_wise: bool = True
    width: int = HIDDEN_SIZE
    prompt: BridgePrompt | None = None

    @property
    def kind(self) -> str:
        return self.name

    @property
    def content_hash(self) -> str:
        return f"hash-of-{self.name}"

    def num_rows(self, num_rows: int) -> int:
        return num_rows

    def apply(self, rows: Rows) -> Rows:
        if rows.ndim != 2 or rows.shape[1] != self.source.hidden_size:
            raise BridgeError(f"bridge {self.name} reads rows of width {self.source.hidden_size}")
        return self.make(rows)


class FakeBridges:
    """Bridges by name."""

    def __init__(self, bridges: Sequence[FakeBridge]) -> None:
        self._bridges = {bridge.name: bridge for bridge in bridges}

    def __iter__(self) -> Iterator[FakeBridge]:
        return iter(self._bridges.values())

    def get(self, name: str) -> FakeBridge:
        if name not in self._bridges:
            raise BridgeError(f"there is no bridge {name}; there are: {', '.join(self._bridges)}")
        return self._bridges[name]

    @property
    def default_step(self) -> str:
        return "weights"

    def step(self, name: str) -> Any:
        return self.get(name)

    def step_start(self, name: str) -> Rows | None:
        self.get(name)
        return None


def fake_bridges(model_id: str) -> FakeBridges:
    """The built-in bridges of a model of that id."""
    any_source = BridgeSource(hidden_size=HIDDEN_SIZE)
    own_source = BridgeSource(model_id, None, HIDDEN_SIZE, layer="last", normed=True)
    return FakeBridges(
        [
            FakeBridge("embeddings", lambda rows: rows, any_source),
            FakeBridge("norm", _scaled, any_source),
            FakeBridge("weights", _scaled, own_source),
        ]
    )


def _scaled(rows: Rows) -> Rows:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Rows = (rows / np.maximum(norms, 1e-6)).astype(np.float32)
    return scaled
