"""A request as an engine gets it: everything that decides one answer. It knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from latentwire_service.engine.errors import InvalidParamsError
from latentwire_service.engine.prompt import Prompt
from latentwire_service.engine.sampling_params import SamplingParams


class StepBridge(Protocol):
    """Turns hidden rows into the inputs of latent steps. It is pure, and works row by row.

    The types are Any because this module knows no tensors: both are `torch.Tensor`.
    """

    def __call__(self, rows: Any, /) -> Any:
        """Return `[B, embedding_size]` float32 for rows `[B, hidden_size]` float32.

        Requests with the same bridge are computed together, on the model's device.
        """
        ...


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Everything that decides one answer, and the caller who gets it.

    Attributes:
        plan_id: id of the answer.
        prompt: at least one position.
        sampling: how tokens are chosen and when generation ends.
        k: number of hidden rows to keep; None keeps all.
        caller: requests of one caller share its turns in the queue; "" when callers are unknown.
        latent_steps: steps before the first token whose input is an embedding made of the last row.
        step_bridge: makes these inputs; needed if there are any.
        given_token_ids: the plan, to be scored; None when the plan is to be generated.

    Raises:
        InvalidParamsError: there is nothing to generate or to score, no bridge for the latent
            steps, or latent steps before a given plan.
    """

    plan_id: str
    prompt: Prompt
    sampling: SamplingParams
    k: int | None = None
    caller: str = ""
    latent_steps: int = 0
    step_bridge: StepBridge | None = None
    given_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to do."""
        if self.latent_steps < 0:
            raise InvalidParamsError("latent_steps", "must be at least 0")
        if self.given_token_ids is not None:
            if not self.given_token_ids:
                raise InvalidParamsError("plan", "has no tokens to be scored")
            if self.latent_steps:
                raise InvalidParamsError("latent_steps", "must be 0 when a plan is scored")
        if not self.num_outputs:
            raise InvalidParamsError("max_new_tokens", "must be at least 1 without latent_steps")
        if self.latent_steps and self.step_bridge is None:
            raise InvalidParamsError("step_bridge", "latent_steps need a bridge")

    @property
    def num_outputs(self) -> int:
        """Most steps of the answer: latent steps and tokens."""
        if self.given_token_ids is not None:
            return len(self.given_token_ids)
        return self.latent_steps + self.sampling.max_new_tokens

    @property
    def num_positions(self) -> int:
        """Positions of a slot that the request may need."""
        return len(self.prompt) + self.num_outputs

    @property
    def max_rows(self) -> int:
        """Most hidden rows that the answer can have."""
        limit = self.num_outputs
        return limit if self.k is None else min(self.k, limit)
