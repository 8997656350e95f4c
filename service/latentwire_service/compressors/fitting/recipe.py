"""The interface between the command and the kinds of compressors: how one of them is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from latentwire.bridge_manifest import Prompt, Target
from latentwire.compressors.base import Compressor, Output
from latentwire.compressors.manifest import UsedBridge
from latentwire_service.fitting.checkpoint import Checkpoint
from latentwire_service.fitting.progress import FitProgress
from latentwire_service.fitting.samples import Sample, Split
from latentwire_service.fitting.training import Tensors

Scores = dict[str, float]
Make = Callable[[int | None], Compressor]


@dataclass(frozen=True, slots=True)
class Facts:
    """What `compressor.json` states about a compressor of this kind.

    Attributes:
        dim: width of a compressed row.
        output: what the main array holds.
        receiver: the model whose embeddings it makes, if it does.
        bridge: through which it is trained, if it is.
        prompt: in which its messages stand during training, if they do.
    """

    dim: int
    output: Output = "coefficients"
    receiver: Target | None = None
    bridge: UsedBridge | None = None
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted compressor.

    Attributes:
        tensors: by the names that the client package reads.
        config: sizes and choices.
    """

    tensors: Tensors
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """What a fit works with.

    Attributes:
        split: the samples to fit to.
        checked: held-out samples that decide choices; at least two.
        width: of the rows.
        checkpoint: the state of an unfinished fit.
        progress: shows phases.
        device: to compute on.
        seed: of the fit.
    """

    split: Split
    checked: Sequence[Sample]
    width: int
    checkpoint: Checkpoint
    progress: FitProgress
    device: torch.device
    seed: int


class Recipe(Protocol):
    """How a compressor of one kind is fitted."""

    @property
    def facts(self) -> Facts:
        """What is known before the fit."""

    def fit(self, work: Work) -> Fitted:
        """Fit a compressor.

        A fit that was killed continues from the checkpoint.

        Raises:
            BridgeError: the dataset cannot be used.
        """

    def scores(
        self, make: Make, samples: Sequence[Sample], progress: FitProgress
    ) -> dict[str, Scores]:
        """Score the compressor as it is stored, apart from how well it reconstructs.

        Args:
            make: makes it with a k.
            samples: held-out ones, at least two.
            progress: shows the phase.

        Returns:
            Numbers by name, by the name of what was scored.
        """
