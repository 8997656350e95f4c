"""The seam between an engine and bridges: what reads foreign hidden rows as input embeddings.

A bridge maps rows `[L, H_sender]` of a latent to input embeddings `[L', H_receiver]` of the loaded
model. Nothing here knows tensors of a framework, HTTP, or how a bridge is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.errors import EngineError

Rows = npt.NDArray[np.float32]


class BridgeError(EngineError):
    """A bridge cannot be loaded, does not exist, or cannot read the given rows.

    Attributes:
        hint: what helps, in one sentence; empty when there is nothing to say.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class BridgeSource:
    """Which latents a bridge was made for. A field that is None accepts any value.

    Attributes:
        model: id of the sender's model.
        revision: branch, tag or commit of the sender's model.
        hidden_size: width of its rows.
        layer: the layer that the rows come from.
        normed: whether the rows are taken after the final norm.
    """

    model: str | None = None
    revision: str | None = None
    hidden_size: int | None = None
    layer: str | None = None
    normed: bool | None = None

    def differences(self, declared: Mapping[str, object]) -> list[str]:
        """Name what a latent declares differently, each with both values.

        Args:
            declared: values by the names of these fields; an absent or None value is not compared.
        """
        found = []
        for name in self.__dataclass_fields__:
            wanted, given = getattr(self, name), declared.get(name)
            if wanted is not None and given is not None and wanted != given:
                found.append(f"{name} is {given}, the bridge was made for {wanted}")
        return found


@dataclass(frozen=True, slots=True)
class BridgePrompt:
    """The user message that a bridge was fitted with: the latent stands between two texts."""

    before: str
    after: str


class Bridge(Protocol):
    """A map from hidden rows to input embeddings of the loaded model."""

    @property
    def name(self) -> str:
        """Unique among the loaded bridges."""
        ...

    @property
    def kind(self) -> str:
        """How it maps, such as `weights` or `mlp`."""
        ...

    @property
    def is_builtin(self) -> bool:
        """Whether it was made from the loaded model, not loaded from a directory."""
        ...

    @property
    def source(self) -> BridgeSource:
        """The latents that it was made for."""
        ...

    @property
    def width(self) -> int:
        """Width of the embeddings that it returns."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything that decides its values, in hexadecimal."""
        ...

    @property
    def prompt(self) -> BridgePrompt | None:
        """The message that it was fitted with; None when it was not fitted."""
        ...

    @property
    def is_row_wise(self) -> bool:
        """Whether each row is mapped by itself, so that the bridge can feed latent steps."""
        ...

    def num_rows(self, num_rows: int) -> int:
        """Return how many embeddings it makes of so many rows."""
        ...

    def apply(self, rows: Rows) -> Rows:
        """Map the rows of one latent.

        Args:
            rows: `[L, H_sender]` float32.

        Returns:
            `[num_rows(L), width]` float32, C-contiguous.

        Raises:
            BridgeError: the rows have another width, or an embedding is not finite.
        """
        ...


class Bridges(Protocol):
    """The bridges of one loaded model."""

    def __iter__(self) -> Iterator[Bridge]:
        """Yield them: built-in ones first, then the loaded ones in the order of their flags."""
        ...

    def get(self, name: str) -> Bridge:
        """Return a bridge; `random:NAME` is the random control of bridge NAME.

        Raises:
            BridgeError: there is none of that name; the message lists the names.
        """
        ...

    @property
    def default_step(self) -> str:
        """Name of the bridge that feeds latent steps unless a request names one."""
        ...

    def step_start(self, name: str) -> Rows | None:
        """Return the embeddings that end the prompt before latent steps of a bridge.

        Returns:
            `[n, width]` float32; None for a bridge that needs none.

        Raises:
            BridgeError: there is none of that name.
        """
        ...

    def step(self, name: str) -> Any:
        """Return the bridge as the function that feeds latent steps; the same object each time.

        Raises:
            BridgeError: there is none of that name, or it does not map each row by itself.
        """
        ...
