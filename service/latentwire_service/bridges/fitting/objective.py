"""What a trained bridge minimizes, through the frozen receiver.

The loss is the likelihood of the sender's plan after its own latent, plus a hinge on how much
likelier it is than after another task's latent. Without the hinge, the bridge becomes a soft
prompt: it makes all plans likelier, and carries nothing of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentwire_service.bridges.modules import BridgeModule
from latentwire_service.fitting.receiver import FrozenReceiver, hinge, matched_and_other
from latentwire_service.fitting.samples import Sample


class BridgeObjective:
    """The loss of a bridge's messages.

    Args:
        module: the bridge's map, on the receiver's device.
        receiver: reads the embeddings.
        margin: nats per token by which a plan shall be likelier after its own latent.
    """

    def __init__(self, module: BridgeModule, receiver: FrozenReceiver, margin: float) -> None:
        self._module = module
        self._receiver = receiver
        self._margin = margin

    # The loss is the same at every step; `Objective` names the argument.
    def losses(self, batch: Sequence[Sample], step: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of each sample, as `Objective.losses`."""
        messages = [
            self._module(torch.tensor(sample.rows, device=self._module.device)) for sample in batch
        ]
        matched, other = matched_and_other(self._receiver, messages, batch)
        return matched + hinge(matched, other, self._margin)
