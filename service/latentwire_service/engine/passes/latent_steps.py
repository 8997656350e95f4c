"""Latent steps: steps whose input is an embedding that a bridge makes of the last hidden row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from latentwire_service.engine.backend import StepBridge
from latentwire_service.engine.errors import EngineError, StepBridgeError
from latentwire_service.engine.request import Request
from latentwire_service.engine.runner import StepEmbeddings


@dataclass(frozen=True, slots=True)
class MadeInputs:
    """What the bridges gave for B requests.

    Attributes:
        is_finite: `[B]` bool on the device; True for requests that needed nothing.
        errors: the failure of each request whose bridge failed.
    """

    is_finite: torch.Tensor
    errors: Mapping[int, EngineError]


class LatentSteps:
    """The next inputs of all requests in latent steps.

    Args:
        embedding_size: width of an input embedding.
    """

    def __init__(self, embedding_size: int) -> None:
        self._embedding_size = embedding_size
        self._inputs: dict[Request, torch.Tensor] = {}

    def make(
        self, requests: Sequence[Request], stepping: Sequence[int], hidden: torch.Tensor
    ) -> MadeInputs:
        """Make the next inputs of requests. Those with the same bridge are computed together.

        Args:
            requests: B requests.
            stepping: indices of those in a latent step.
            hidden: `[B, hidden_size]`, their hidden rows.
        """
        is_finite = torch.ones(len(requests), dtype=torch.bool, device=hidden.device)
        errors: dict[int, EngineError] = {}
        for bridge, members in _by_bridge(requests, stepping):
            try:
                made = self._apply(bridge, hidden[members].float())
            except Exception as error:
                # Foreign code: the requests that use it fail, and no others.
                for index in members:
                    errors[index] = StepBridgeError("the bridge of the latent steps failed")
                    errors[index].__cause__ = error
                continue
            is_finite[members] = torch.isfinite(made).all(dim=-1)
            self._inputs.update(
                (requests[index], row) for index, row in zip(members, made, strict=True)
            )
        return MadeInputs(is_finite, errors)

    def take(
        self, requests: Sequence[Request], slots: Sequence[int], num_slots: int
    ) -> StepEmbeddings | None:
        """Return the inputs of a decode step; None when all of them are tokens.

        Args:
            requests: those of the step.
            slots: their slots.
            num_slots: rows of the step.
        """
        if not self._inputs:
            return None
        fed = [
            (slot, self._inputs.pop(request))
            for request, slot in zip(requests, slots, strict=True)
            if request in self._inputs
        ]
        if not fed:
            return None
        given = torch.stack([row for _, row in fed])
        index = torch.tensor([slot for slot, _ in fed], device=given.device)
        rows = given.new_zeros(num_slots, self._embedding_size)
        rows[index] = given
        is_used = torch.zeros(num_slots, dtype=torch.bool, device=given.device)
        is_used[index] = True
        return StepEmbeddings(rows, is_used)

    def forget(self, request: Request) -> None:
        """Free what is held for a request."""
        self._inputs.pop(request, None)

    def _apply(self, bridge: StepBridge, rows: torch.Tensor) -> torch.Tensor:
        made = bridge(rows)
        expected = (len(rows), self._embedding_size)
        if not isinstance(made, torch.Tensor) or made.shape != expected:
            shape = list(getattr(made, "shape", []))
            raise ValueError(f"the bridge gave {type(made).__name__} {shape}, not {list(expected)}")
        return made.to(rows)


def _by_bridge(
    requests: Sequence[Request], stepping: Sequence[int]
) -> list[tuple[StepBridge, list[int]]]:
    """Group the requests that need one more input by their bridge."""
    groups: dict[int, tuple[StepBridge, list[int]]] = {}
    for index in stepping:
        request = requests[index]
        bridge = request.spec.step_bridge
        # The last step of a request without tokens has no successor.
        if bridge is not None and request.num_steps + 1 < request.spec.num_outputs:
            groups.setdefault(id(bridge), (bridge, []))[1].append(index)
    return list(groups.values())
