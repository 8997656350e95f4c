"""The answer to one task as a Python value. Knows the wire models, not HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentwire.errors import MissingDependencyError, ProtocolError
from latentwire.protocol import FinishReason, LatentInfo, PlanLatentResponse, Timings, Usage
from latentwire.tensors import decode_hidden_state

if TYPE_CHECKING:
    import torch


# An array has no single truth value, so answers compare by identity.
@dataclass(frozen=True, eq=False)
class PlanLatent:
    """A plan and its latent; `latentwire.protocol` says what a latent is.

    Attributes:
        id: the service's name for this answer.
        model: id of the model that made it.
        task: the task as sent.
        task_id: the caller's own id, as sent.
        plan: the generated text.
        k: hidden rows asked for; None: all.
        hidden_state: `[rows, hidden_size]` float32, a read-only view of the bytes received.
        latent: which hidden state this is.
        token_ids: the generated tokens; row t of `hidden_state` predicted token t.
        finish_reason: "stop" or "length".
        seed: the seed used; sending it again repeats the answer.
        usage: token counts.
        timings: where the time went, in milliseconds.
    """

    id: str
    model: str
    task: str
    task_id: str | None
    plan: str
    k: int | None
    hidden_state: npt.NDArray[np.float32] = field(repr=False)
    latent: LatentInfo
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: Timings

    @classmethod
    def from_response(cls, response: PlanLatentResponse) -> PlanLatent:
        """Decode a response.

        Raises:
            ProtocolError: when its hidden state cannot be decoded or its counts disagree.
        """
        hidden_state = decode_hidden_state(response.hidden_state)
        _check_counts(response, num_rows=hidden_state.shape[0])
        return cls(
            id=response.id,
            model=response.model,
            task=response.task,
            task_id=response.task_id,
            plan=response.plan,
            k=response.k,
            hidden_state=hidden_state,
            latent=response.latent,
            token_ids=tuple(response.token_ids),
            finish_reason=response.finish_reason,
            seed=response.seed,
            usage=response.usage,
            timings=response.timings,
        )

    def to_torch(self) -> torch.Tensor:
        """Copy the hidden state into a tensor of its own.

        Returns:
            `[rows, hidden_size]` float32, CPU; writing to it changes nothing else.

        Raises:
            MissingDependencyError: when torch is not installed.
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise MissingDependencyError("to_torch() needs torch: pip install torch") from error
        return torch.from_numpy(np.array(self.hidden_state, dtype=np.float32))


def _check_counts(response: PlanLatentResponse, num_rows: int) -> None:
    """Hold an answer to the latent's invariant: rows == min(k, L), counted alike everywhere."""
    usage, k = response.usage, response.k
    num_expected = usage.completion_tokens if k is None else min(k, usage.completion_tokens)
    if not num_rows == usage.latent_steps == num_expected:
        raise ProtocolError(
            f"answer {response.id} has {num_rows} hidden rows and latent_steps "
            f"{usage.latent_steps}; k {k} and {usage.completion_tokens} completion tokens "
            f"make {num_expected}"
        )
    if len(response.token_ids) != usage.completion_tokens:
        raise ProtocolError(
            f"answer {response.id} has {len(response.token_ids)} token_ids for "
            f"{usage.completion_tokens} completion tokens"
        )
